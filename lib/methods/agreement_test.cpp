// Device planners on the CPU model of a GPU, run over the registry: a new method with a device
// planner gets these by its one line in methods.def.
#include "lib/testing/agreement.h"

#include <gtest/gtest.h>

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
  SparsePlan plan_on_model(Planner& planner, const AttentionInput& input,
                           std::uint64_t seed = 1) const {
    const testing::ModelPlan model =
        testing::plan_on_model(planner, input, seed, GetParam().variant);
    EXPECT_EQ(model.error_word, 0u);
    return model.plan;
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
      testing::expect_agreement(method(), input, params, plan_on_model(*planner, input));
    }
  }
}

// A kernel that mistakes a tile of another batch for its own reads its tokens or writes its rows.
TEST_P(DeviceAgreementTest, batches_that_share_memory_have_the_plan_of_one) {
  const AttentionInput input = testing::structured_input({1700, 2, 1, 64}, "stripes");
  const auto& params = method().info().device.settings.front();
  const auto whole = testing::planner_of(method(), input, params);
  ASSERT_NE(whole, nullptr);
  ASSERT_EQ(whole->num_batches(), 1);
  const SparsePlan expected = plan_on_model(*whole, input);
  for (const std::int64_t bytes : {0, 3}) {  // a tile a batch, or a few
    const auto batched = testing::planner_of(
        method(), input, params,
        {.l2_bytes = 1 << 20, .list_bytes_per_token = bytes, .scratch_bytes = 1});
    EXPECT_LE(batched->workspace().bytes(), whole->workspace().bytes());
    const SparsePlan plan = plan_on_model(*batched, input, 3);
    check_plan(input.problem, plan);
    EXPECT_EQ(testing::compare_plans(input.problem, plan, expected).differing_tiles, 0);
    for (std::size_t pass = 0; pass < plan.passes.size(); ++pass) {
      EXPECT_EQ(plan.passes[pass].item_offsets, expected.passes[pass].item_offsets);
      EXPECT_EQ(plan.passes[pass].key_order, expected.passes[pass].key_order);
      EXPECT_EQ(plan.passes[pass].query_order, expected.passes[pass].query_order);
      EXPECT_EQ(plan.passes[pass].fold_end, expected.passes[pass].fold_end);
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

}  // namespace
}  // namespace s2o
