// What every method with a device planner is held to: the plan of the device is that of plan_cpu,
// up to the near-ties that MethodInfo::device allows. The same cases run on the CPU model of a GPU
// (lib/methods/agreement_test.cpp) and on a GPU (lib/methods/planning_gpu_test.cpp).
#pragma once

#include <gtest/gtest.h>

#include <iostream>
#include <string>
#include <vector>

#include "lib/core/error.h"
#include "lib/testing/inputs.h"
#include "lib/testing/plan_compare.h"

namespace s2o::testing {

// A planner for a long input, to learn whether settings have device code.
inline std::unique_ptr<Planner> long_planner(const Method& method, const ParamSet& params) {
  return method.device_planner({.problem = {.seqlen = 131072,
                                            .num_q_heads = 8,
                                            .num_kv_heads = 2,
                                            .head_dim = 128,
                                            .softmax_scale = 0.1f},
                                .params = params});
}

// Methods with a device planner for their defaults.
inline std::vector<const Method*> planned_methods() {
  std::vector<const Method*> methods;
  for (const Method* method : all_methods()) {
    if (long_planner(*method, ParamSet(method->info().params)) != nullptr) {
      methods.push_back(method);
    }
  }
  return methods;
}

// Settings that are also planned in batches: the first, and the defaults.
inline std::vector<nlohmann::ordered_json> batched_settings(const Method& method) {
  return {method.info().device.settings.front(), nlohmann::ordered_json::object()};
}

// False where these settings have kernels for sm_90a alone and say so; with those, everything runs.
template <class Plan>
bool plans_with(PlanningVariant variant, const Plan& plan) {
  try {
    plan();
  } catch (const UnsupportedError& error) {
    if (variant == PlanningVariant::kSm90 ||
        std::string(error.what()).find("sm_90a") == std::string::npos) {
      throw;
    }
    return false;
  }
  return true;
}

// Null for settings without device code on this input.
inline std::unique_ptr<Planner> planner_of(const Method& method, const AttentionInput& input,
                                           const nlohmann::ordered_json& params,
                                           PlannerLimits limits = {.l2_bytes = 1 << 20}) {
  const ParamSet settings = settings_of(method, params);
  return method.device_planner(
      {.problem = input.problem, .dtype = input.dtype, .params = settings, .limits = limits});
}

struct AgreementInput {
  Shape shape;
  const char* pattern;
  StorageDType dtype;
};
// Ragged lengths, all group sizes, both head dimensions and types.
inline const std::vector<AgreementInput>& agreement_inputs() {
  static const std::vector<AgreementInput> kInputs = {
      {{2100, 4, 2, 64}, "mixed", StorageDType::kBF16},
      {{1090, 3, 1, 128}, "stripes", StorageDType::kF16},
      {{130, 2, 2, 64}, "mixed", StorageDType::kF16},
      {{5, 1, 1, 128}, "mixed", StorageDType::kBF16}};
  return kInputs;
}

inline void expect_agreement(const Method& method, const AttentionInput& input,
                             const nlohmann::ordered_json& params, const SparsePlan& plan) {
  SCOPED_TRACE(method.info().name + " " + params.dump() + " seqlen " +
               std::to_string(input.problem.seqlen));
  const DenseReference none;
  const SparsePlan expected =
      method.plan_cpu({.input = input, .reference = none}, settings_of(method, params));
  check_plan(input.problem, plan);
  ASSERT_EQ(plan.passes.size(), expected.passes.size());
  for (std::size_t pass = 0; pass < plan.passes.size(); ++pass) {
    EXPECT_EQ(plan.passes[pass].fold_end, expected.passes[pass].fold_end);
  }
  const PlanDifference d = compare_plans(input.problem, plan, expected);
  EXPECT_LE(static_cast<double>(d.extra_keys + d.missing_keys),
            method.info().device.tie_share * static_cast<double>(d.keys));
  if (d.differing_tiles == 0) return;
  std::cout << method.info().name << " seqlen " << input.problem.seqlen << ": " << d.differing_tiles
            << " of " << d.tiles << " tiles with near-ties, " << d.extra_keys << " keys more, "
            << d.missing_keys << " fewer of " << d.keys << "\n";
}

}  // namespace s2o::testing
