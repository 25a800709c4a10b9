// Planners on the CPU model of a grid (simt.h), and how their plans are compared with those of the
// CPU methods. Tests only.
#pragma once

#include <cstdint>

#include "kernels/planning/planner.h"
#include "lib/input/attention_input.h"
#include "lib/plan/sparse_plan.h"

namespace s2o::testing {

struct ModelPlan {
  SparsePlan plan;
  std::uint32_t error_word = 0;
};
// Workspace memory is poisoned first. `seed` decides the order of threads.
ModelPlan plan_on_model(Planner& planner, const AttentionInput& input, std::uint64_t seed = 1);

// Keys that one plan visits and the other does not, over all plan tiles; sets, not order.
struct PlanDifference {
  std::int64_t tiles = 0;
  std::int64_t differing_tiles = 0;
  std::int64_t keys = 0;        // of the reference
  std::int64_t extra_keys = 0;  // not in the reference
  std::int64_t missing_keys = 0;
};
// Both plans must have the same tiles and orders of rows.
PlanDifference compare_plans(const Problem& problem, const SparsePlan& plan,
                             const SparsePlan& reference);

}  // namespace s2o::testing
