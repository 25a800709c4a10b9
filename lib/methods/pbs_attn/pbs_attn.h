// Settings and device planner of PBS-Attn (definition: pbs_attn.cpp).
#pragma once

#include <cstdint>
#include <memory>

#include "lib/planning/tile_planner.h"

namespace s2o {

struct PbsSettings {
  int block;             // tokens of a block of queries, and of keys
  std::int64_t segment;  // tokens that are permuted together, a multiple of block
  double threshold;      // share of each row's mass in earlier segments
  PlannedFold fold;      // ends at whole segments
};

// Segments and blocks that kernels/planning/pbs_attn can hold; one segment alone is dense.
bool pbs_attn_plans_on_device(const Problem& problem, const PbsSettings& settings);
std::unique_ptr<Planner> pbs_attn_planner(const Problem& problem, const PbsSettings& settings,
                                          const PlannerLimits& limits);

}  // namespace s2o
