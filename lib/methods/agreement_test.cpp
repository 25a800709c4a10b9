// Device planners on the CPU model of a GPU, run over the registry: a new method with a device
// planner gets these by its one line in methods.def.
#include "lib/testing/agreement.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <optional>
#include <set>
#include <utility>

#include "lib/testing/model_planning.h"

namespace s2o {
namespace {

using testing::AgreementInput;

struct AgreementCase {
  const Method* method;
  PlanningVariant variant;
};
std::vector<AgreementCase> agreement_cases() {
  std::vector<AgreementCase> cases;
  for (const Method* method : testing::planned_methods()) {
    for (const PlanningVariant variant : {PlanningVariant::kSm80, PlanningVariant::kSm90}) {
      cases.push_back({method, variant});
    }
  }
  return cases;
}
std::string case_name(const ::testing::TestParamInfo<AgreementCase>& info) {
  return info.param.method->info().name +
         (info.param.variant == PlanningVariant::kSm90 ? "_sm90" : "_sm80");
}

class DeviceAgreementTest : public ::testing::TestWithParam<AgreementCase> {
 protected:
  const Method& method() const { return *GetParam().method; }
  // Nothing where the settings have no kernels of this variant.
  std::optional<SparsePlan> plan_on_model(Planner& planner, const AttentionInput& input,
                                          std::uint64_t seed = 1) const {
    std::optional<testing::ModelPlan> model;
    const bool has_kernels = testing::plans_with(GetParam().variant, [&] {
      model = testing::plan_on_model(planner, input, seed, GetParam().variant);
    });
    if (!has_kernels) return std::nullopt;
    EXPECT_EQ(model->error_word, 0u);
    return std::move(model->plan);
  }
};

TEST_P(DeviceAgreementTest, plans_of_the_device_are_those_of_the_cpu) {
  ASSERT_FALSE(method().info().device.settings.empty())
      << "MethodInfo::device names no settings to compare";
  for (const AgreementInput& spec : testing::agreement_inputs()) {
    const AttentionInput input = testing::structured_input(spec.shape, spec.pattern, spec.dtype);
    for (const auto& params : method().info().device.settings) {
      const auto planner = testing::planner_of(method(), input, params);
      if (planner == nullptr) {  // an input so short that the method is dense
        EXPECT_LT(input.problem.seqlen, 1000) << params.dump();
        continue;
      }
      const std::optional<SparsePlan> plan = plan_on_model(*planner, input);
      if (plan) testing::expect_agreement(method(), input, params, *plan);
    }
  }
}

void expect_same_plan(const Problem& problem, const SparsePlan& plan, const SparsePlan& expected) {
  check_plan(problem, plan);
  EXPECT_EQ(testing::compare_plans(problem, plan, expected).differing_tiles, 0);
  for (std::size_t pass = 0; pass < plan.passes.size(); ++pass) {
    EXPECT_EQ(plan.passes[pass].item_offsets, expected.passes[pass].item_offsets);
    EXPECT_EQ(plan.passes[pass].key_order, expected.passes[pass].key_order);
    EXPECT_EQ(plan.passes[pass].query_order, expected.passes[pass].query_order);
    EXPECT_EQ(plan.passes[pass].fold_end, expected.passes[pass].fold_end);
  }
}

// A kernel that mistakes a tile of another batch for its own reads its tokens or writes its rows.
TEST_P(DeviceAgreementTest, batches_that_share_memory_have_the_plan_of_one) {
  const AttentionInput input = testing::structured_input({1700, 2, 1, 64}, "stripes");
  for (const auto& params : testing::batched_settings(method())) {
    SCOPED_TRACE(params.dump());
    const auto whole = testing::planner_of(method(), input, params);
    if (whole == nullptr) continue;  // the method is dense
    ASSERT_EQ(whole->num_batches(), 1);
    const std::optional<SparsePlan> expected = plan_on_model(*whole, input);
    if (!expected) continue;
    for (const std::int64_t bytes : {0, 3}) {  // a tile a batch, or a few
      const auto batched = testing::planner_of(
          method(), input, params,
          {.l2_bytes = 1 << 20, .list_bytes_per_token = bytes, .scratch_bytes = 1});
      EXPECT_LE(batched->workspace().bytes(), whole->workspace().bytes());
      expect_same_plan(input.problem, plan_on_model(*batched, input, 3).value(), *expected);
    }
  }
}

INSTANTIATE_TEST_SUITE_P(all, DeviceAgreementTest, ::testing::ValuesIn(agreement_cases()),
                         case_name);

TEST(DeviceAgreementRegistry, methods_without_a_device_planner_name_no_settings) {
  const std::vector<const Method*> planned = testing::planned_methods();
  for (const Method* method : all_methods()) {
    const bool has_planner = std::find(planned.begin(), planned.end(), method) != planned.end();
    EXPECT_EQ(has_planner, !method->info().device.settings.empty()) << method->info().name;
  }
}

// A choice with kernels of its own cannot be left out.
TEST(DeviceAgreementRegistry, every_choice_that_a_device_can_plan_is_compared) {
  const std::set<std::string> not_of_planning = {"compensation", "stop_reduce"};
  for (const Method* method : testing::planned_methods()) {
    const MethodInfo& info = method->info();
    for (const ParamSpec& spec : info.params) {
      std::vector<nlohmann::ordered_json> values(spec.choices.begin(), spec.choices.end());
      if (spec.type == ParamType::kBool) values = {false, true};
      if (not_of_planning.contains(spec.name)) continue;
      for (const auto& value : values) {
        try {
          if (!testing::long_planner(*method, testing::settings_of(*method, {{spec.name, value}})))
            continue;
        } catch (const ConfigError&) {
          continue;  // not together with the defaults
        }
        EXPECT_TRUE(std::any_of(
            info.device.settings.begin(), info.device.settings.end(),
            [&](const auto& settings) {
              return testing::settings_of(*method, settings).to_json()[spec.name] == value;
            }))
            << info.name << ": no settings of MethodInfo::device have " << spec.name << " "
            << value.dump();
      }
    }
  }
}

}  // namespace
}  // namespace s2o
