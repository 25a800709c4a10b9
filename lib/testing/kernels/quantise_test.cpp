#include "kernels/attention/quantise.h"

#include <gtest/gtest.h>

#include <random>

#include "kernels/common/error.h"
#include "lib/testing/inputs.h"

namespace s2o {
namespace {

testing::Executed run_quantised(const AttentionInput& input, const QuantiseRule& rule,
                                const SparsePlan& plan) {
  const Problem& problem = input.problem;
  const PlanPointers pointers(plan);
  testing::Executed result;
  result.out.assign(input.q.size(), std::numeric_limits<float>::quiet_NaN());
  result.lse.assign(static_cast<std::size_t>(problem.seqlen * problem.num_q_heads),
                    std::numeric_limits<float>::quiet_NaN());
  result.stats.resize(plan.passes.size() * static_cast<std::size_t>(plan.num_tiles()));
  attention_quantised_ref(problem, pointers.view(), input.q.data(), input.k.data(), input.v.data(),
                          rule, result.out.data(), result.lse.data(), result.stats.data());
  return result;
}
testing::Executed run_dense(const AttentionInput& input, const QuantiseRule& rule = {}) {
  return run_quantised(input, rule, dense_plan(input.problem, 128, 128));
}
double dense_error(const AttentionInput& input, const QuantiseRule& rule = {}) {
  return testing::relative_l2(run_dense(input, rule).out, testing::naive_dense(input).out);
}

TEST(QuantisedAttention, dense_is_near_the_definition) {
  for (const testing::Shape& shape :
       {testing::Shape{1, 1, 1, 64}, {127, 4, 1, 64}, {129, 4, 2, 128}, {700, 4, 1, 64}}) {
    const AttentionInput input = testing::structured_input(shape);
    const DenseReference expected = testing::naive_dense(input);
    const testing::Executed actual = run_dense(input);
    EXPECT_LE(testing::relative_l2(actual.out, expected.out), 0.05) << shape.seqlen;
    EXPECT_LE(testing::relative_l2(actual.lse, expected.lse), 0.01) << shape.seqlen;
  }
}

// Every early stop, gather and pass of a plan runs on the same operands.
TEST(QuantisedAttention, sparse_plan_is_near_the_same_plan_in_fp32) {
  const AttentionInput input = testing::structured_input({600, 2, 1, 64});
  DenseReference none;
  const Method& method = find_method("s2o_plus");
  const SparsePlan plan =
      method.plan_cpu({.input = input, .reference = none}, ParamSet(method.info().params));
  EXPECT_LE(
      testing::relative_l2(run_quantised(input, {}, plan).out, testing::execute(input, plan).out),
      0.06);
}

TEST(QuantisedAttention, gathered_values_keep_16_bits) {
  const AttentionInput input = testing::structured_input({600, 2, 1, 64});
  DenseReference none;
  const auto is_wide = [&](const char* name) {
    const Method& method = find_method(name);
    const SparsePlan plan = method.plan_cpu({input, none}, ParamSet(method.info().params));
    return has_wide_values(PlanPointers(plan).view());
  };
  EXPECT_FALSE(is_wide("dense"));
  EXPECT_FALSE(is_wide("xattention"));
  EXPECT_TRUE(is_wide("pbs_attn"));
  EXPECT_TRUE(is_wide("s2o"));
}

TEST(QuantisedAttention, mean_of_keys_costs_nothing_once_it_is_subtracted) {
  AttentionInput input = testing::structured_input({500, 2, 1, 64});
  const double before = dense_error(input, {.smooth_k = true, .rotate_qk = false});
  for (std::size_t i = 3; i < input.k.size(); i += 64) input.k[i] += 60.0f;
  EXPECT_LE(dense_error(input, {.smooth_k = true, .rotate_qk = false}), 1.2 * before + 0.01);
  EXPECT_GT(dense_error(input, {.smooth_k = false, .rotate_qk = false}), 2.0 * before);
}

// Variances of single dimensions are others once K is rotated: folded columns do not see the rule.
TEST(QuantisedAttention, folded_columns_are_of_the_stored_input) {
  AttentionInput input = testing::structured_input({900, 2, 1, 64});
  std::mt19937 generator(1);
  std::normal_distribution<float> normal;
  for (const auto tensor : {&AttentionInput::q, &AttentionInput::k, &AttentionInput::v}) {
    for (float& x : input.*tensor) x = normal(generator);
  }
  for (std::size_t i = 0; i < input.q.size(); ++i) input.q[i] *= i % 64 < 8 ? 3.0f : 1.0f;
  for (std::size_t i = 0; i < input.k.size(); ++i) input.k[i] *= i % 64 < 8 ? 1.5f : 1.0f;
  DenseReference none;
  const Method& method = find_method("top_blocks");
  ParamSet params(method.info().params);
  params.set(method.info().params, "topk", 1, "test");
  for (const char* kind : {"centroid", "blocks", "blocks_variance"}) {
    params.set(method.info().params, "compensation", kind, "test");
    const SparsePlan plan = method.plan_cpu({input, none}, params);
    const testing::Executed expected = testing::execute(input, plan);
    for (const bool rotate : {false, true}) {
      for (const bool smooth : {false, true}) {
        const testing::Executed actual =
            run_quantised(input, {.smooth_k = smooth, .rotate_qk = rotate}, plan);
        EXPECT_LE(testing::relative_l2(actual.out, expected.out), 0.05) << kind << rotate << smooth;
        EXPECT_LE(testing::relative_l2(actual.lse, expected.lse), 0.004)
            << kind << rotate << smooth;
      }
    }
  }
}

TEST(QuantisedAttention, sizes_near_the_least_number_are_no_faults) {
  for (const auto tensor : {&AttentionInput::q, &AttentionInput::k, &AttentionInput::v}) {
    AttentionInput input = testing::structured_input({300, 2, 1, 64});
    for (float& x : input.*tensor) x *= 1e-44f;
    const testing::Executed actual = run_dense(input);
    const testing::Executed expected = testing::execute(input, dense_plan(input.problem, 128, 128));
    for (std::size_t i = 0; i < actual.out.size(); ++i) {
      ASSERT_NEAR(actual.out[i], expected.out[i], 0.1 * std::abs(expected.out[i]) + 0.3);
    }
    EXPECT_LE(testing::relative_l2(actual.lse, expected.lse), 0.01);
  }
}

TEST(QuantisedAttention, heads_of_zeros_are_exact) {
  AttentionInput input = testing::structured_input({300, 2, 2, 64});
  const auto one_head = static_cast<std::ptrdiff_t>(300 * 64);
  std::fill_n(input.k.begin(), one_head, 0.0f);
  std::fill(input.v.begin() + one_head, input.v.end(), 0.0f);
  const testing::Executed actual = run_dense(input);
  const DenseReference expected = testing::naive_dense(input);
  EXPECT_LE(testing::relative_l2(actual.out, expected.out), 0.05);
  EXPECT_EQ(actual.out.back(), 0.0f);
}

TEST(QuantisedAttention, what_it_cannot_do_names_found_and_supported) {
  const auto message = [](const AttentionInput& input, const QuantiseRule& rule) -> std::string {
    try {
      run_dense(input, rule);
    } catch (const UnsupportedError& error) {
      return error.what();
    }
    return "";
  };
  AttentionInput input = testing::structured_input({40, 1, 1, 96});
  EXPECT_EQ(message(input, {}), "compute fp8: head_dim is 96, rotate_qk supports powers of two");
  EXPECT_EQ(message(input, {.rotate_qk = false}), "");
  input.v[7] = std::numeric_limits<float>::infinity();
  EXPECT_EQ(message(input, {.rotate_qk = false}),
            "compute fp8: head 0 of v: the largest size is inf, expected a finite one");
  // One key would leave the others no bits.
  input = testing::structured_input({512, 1, 1, 64});
  for (std::size_t i = 0; i < 64; ++i) input.k[400 * 64 + i] = i == 5 ? 1e4f : 0.0f;
  EXPECT_NE(
      message(input, {.rotate_qk = false}).find("times the root mean square, supported is 16"),
      std::string::npos);
}

}  // namespace
}  // namespace s2o
