// What every method must satisfy, run over the registry: a new method gets these by its one line
// in methods.def.
#include <gtest/gtest.h>

#include "lib/core/error.h"
#include "lib/testing/inputs.h"

namespace s2o {
namespace {

using testing::Shape;

class MethodContract : public ::testing::TestWithParam<const Method*> {
 protected:
  const Method& method() const { return *GetParam(); }
};

const std::vector<Shape>& contract_shapes() {
  static const std::vector<Shape> kShapes = {{1, 1, 1, 64},    {127, 4, 1, 64},  {128, 2, 2, 128},
                                             {129, 8, 1, 64},  {1000, 8, 2, 64}, {1536, 4, 4, 128},
                                             {2048, 8, 2, 128}};
  return kShapes;
}

std::string shape_name(const Shape& shape) {
  return std::to_string(shape.seqlen) + " tokens, " + std::to_string(shape.num_q_heads) + "/" +
         std::to_string(shape.num_kv_heads) + " heads of " + std::to_string(shape.head_dim);
}

TEST_P(MethodContract, full_budget_equals_dense) {
  ASSERT_TRUE(method().info().full_budget.exists);
  for (const Shape& shape : contract_shapes()) {
    const AttentionInput input = testing::structured_input(shape);
    const DenseReference reference = testing::dense_reference(input);
    const ParamSet params = testing::settings_of(method(), method().info().full_budget.params);
    const SparsePlan plan = method().plan_cpu({.input = input, .reference = reference}, params);
    check_plan(input.problem, plan);
    const testing::Executed result = testing::execute(input, plan);
    EXPECT_LE(testing::relative_l2(result.out, reference.out), 1e-5) << shape_name(shape);
    const Work work = count_work(input.problem, plan, result.stats);
    EXPECT_DOUBLE_EQ(work.total.pair_density(), 1.0) << shape_name(shape);
  }
}

TEST_P(MethodContract, default_plan_is_valid_and_deterministic) {
  for (const Shape& shape : contract_shapes()) {
    const AttentionInput input = testing::structured_input(shape);
    const DenseReference reference = testing::dense_reference(input);
    const ParamSet params(method().info().params);
    const SparsePlan plan = method().plan_cpu({.input = input, .reference = reference}, params);
    check_plan(input.problem, plan);
    const testing::Executed first = testing::execute(input, plan);
    const SparsePlan again = method().plan_cpu({.input = input, .reference = reference}, params);
    const testing::Executed second = testing::execute(input, again);
    EXPECT_EQ(first.out, second.out) << shape_name(shape);
    EXPECT_EQ(first.lse, second.lse) << shape_name(shape);
    for (const float value : first.out) ASSERT_TRUE(std::isfinite(value)) << shape_name(shape);

    const Work work = count_work(input.problem, plan, first.stats);
    EXPECT_GT(work.total.visited_pairs, 0);
    EXPECT_LE(work.total.visited_pairs, work.total.causal_pairs) << shape_name(shape);
    WorkCounts sum;
    for (const WorkCounts& head : work.per_head) sum += head;
    EXPECT_EQ(sum.executed_pairs, work.total.executed_pairs);
  }
}

// What lets a plan be made once for all layers of a model.
TEST_P(MethodContract, plan_of_the_shape_alone_is_the_plan) {
  if (method().info().reads_input) GTEST_SKIP() << "reads the input";
  const AttentionInput input = testing::structured_input({1000, 8, 2, 64});
  AttentionInput shape_only;
  shape_only.problem = input.problem;
  const DenseReference none;
  const ParamSet params(method().info().params);
  const SparsePlan plan = method().plan_cpu({.input = input, .reference = none}, params);
  const SparsePlan same = method().plan_cpu({.input = shape_only, .reference = none}, params);
  const testing::Executed expected = testing::execute(input, plan);
  EXPECT_EQ(testing::execute(input, same).out, expected.out);
}

// Changing keys and values after a row must not change the row.
TEST_P(MethodContract, output_does_not_depend_on_the_future_given_the_plan) {
  const AttentionInput input = testing::structured_input({640, 4, 2, 64});
  const DenseReference reference = testing::dense_reference(input);
  const ParamSet params(method().info().params);
  const SparsePlan plan = method().plan_cpu({.input = input, .reference = reference}, params);
  const testing::Executed before = testing::execute(input, plan);
  AttentionInput changed = input;
  constexpr std::int64_t kCut = 384;
  for (int head = 0; head < 2; ++head) {
    for (std::int64_t x = kCut; x < 640; ++x) {
      for (int i = 0; i < 64; ++i) {
        const auto index = static_cast<std::size_t>(input.problem.row_offset(head, x) + i);
        changed.k[index] = -2.0f * changed.k[index];
        changed.v[index] = 100.0f;
      }
    }
  }
  const testing::Executed after = testing::execute(changed, plan);
  // Early stops of tiles that reach over the cut may differ; rows of tiles before it may not.
  for (int head = 0; head < 4; ++head) {
    for (std::int64_t t = 0; t < kCut; ++t) {
      const auto index = static_cast<std::size_t>(input.problem.row_offset(head, t));
      for (std::size_t i = 0; i < 64; ++i) {
        ASSERT_EQ(before.out[index + i], after.out[index + i]) << "head " << head << " row " << t;
      }
    }
  }
}

TEST_P(MethodContract, knob_sweep_lowers_density_from_end_to_end) {
  const MethodInfo& info = method().info();
  if (info.knob.empty()) GTEST_SKIP() << "no knob";
  ASSERT_GE(info.knob_sweep.size(), 6u);
  const AttentionInput input = testing::structured_input({2048, 4, 2, 64});
  const DenseReference reference = testing::dense_reference(input);
  std::vector<double> densities;
  for (const double value : {info.knob_sweep.front(), info.knob_sweep.back()}) {
    ParamSet params(info.params);
    params.set(info.params, info.knob, value, info.name);
    const SparsePlan plan = method().plan_cpu({.input = input, .reference = reference}, params);
    const testing::Executed result = testing::execute(input, plan);
    densities.push_back(count_work(input.problem, plan, result.stats).total.compute_density());
  }
  EXPECT_NE(densities[0], densities[1]);
}

std::string method_name(const ::testing::TestParamInfo<const Method*>& method) {
  return method.param->info().name;
}

INSTANTIATE_TEST_SUITE_P(all, MethodContract, ::testing::ValuesIn(all_methods()), method_name);

TEST(MethodRegistry, unknown_name_suggests_the_nearest) {
  try {
    find_method("streaming_lm");
    FAIL() << "no error";
  } catch (const ConfigError& error) {
    EXPECT_NE(std::string(error.what()).find("did you mean 'streaming_llm'"), std::string::npos);
  }
}

}  // namespace
}  // namespace s2o
