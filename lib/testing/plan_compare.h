// How plans of planners are compared with those of the CPU methods. Tests and benchmarks only.
#pragma once

#include <cstdint>

#include "kernels/common/problem.h"
#include "lib/plan/sparse_plan.h"

namespace s2o::testing {

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
