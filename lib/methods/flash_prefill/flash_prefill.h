// Settings and device planner of FlashPrefill (definition: flash_prefill.cpp).
#pragma once

#include <memory>

#include "lib/methods/common/block_energy.h"
#include "lib/planning/tile_planner.h"

namespace s2o {

struct FlashPrefillSettings {
  bool is_v2;   // packed tiles, one mask per KV head; else one mask per query head
  float alpha;  // blocks with energy >= alpha * the tile's maximum are kept
  ForcedBlocks forced;
  PlannedFold fold;  // what stands in for the keys that are not visited
};

std::unique_ptr<Planner> flash_prefill_planner(const Problem& problem,
                                               const FlashPrefillSettings& settings,
                                               const PlannerLimits& limits);

}  // namespace s2o
