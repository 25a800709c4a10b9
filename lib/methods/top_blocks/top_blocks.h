// Settings and device planner of TopBlocks (definition: top_blocks.cpp).
#pragma once

#include <memory>

#include "lib/planning/tile_planner.h"

namespace s2o {

struct TopBlocksSettings {
  int block;          // tokens of a block of queries, and of keys
  std::int32_t topk;  // blocks of a row
  PlannedFold fold;   // what stands in for the keys that are not visited
};

std::unique_ptr<Planner> top_blocks_planner(const Problem& problem,
                                            const TopBlocksSettings& settings,
                                            const PlannerLimits& limits);

}  // namespace s2o
