// Planners on the CPU model of a grid (simt.h). Tests only.
#pragma once

#include <cstdint>

#include "lib/input/attention_input.h"
#include "lib/plan/sparse_plan.h"
#include "lib/planning/planner.h"
#include "lib/testing/plan_compare.h"

namespace s2o::testing {

struct ModelPlan {
  SparsePlan plan;
  std::uint32_t error_word = 0;
};
// Workspace memory is poisoned first. `seed` decides the order of threads.
ModelPlan plan_on_model(Planner& planner, const AttentionInput& input, std::uint64_t seed = 1,
                        PlanningVariant variant = PlanningVariant::kSm80);

}  // namespace s2o::testing
