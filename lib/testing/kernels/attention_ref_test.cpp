#include <gtest/gtest.h>

#include "lib/testing/inputs.h"

namespace s2o {
namespace {

using testing::Shape;

class DenseShapes : public ::testing::TestWithParam<Shape> {};

TEST_P(DenseShapes, attention_ref_dense_plan_equals_definition) {
  const AttentionInput input = testing::structured_input(GetParam());
  const DenseReference expected = testing::naive_dense(input);
  const DenseReference actual = testing::dense_reference(input);
  EXPECT_LE(testing::relative_l2(actual.out, expected.out), 5e-6);
  EXPECT_LE(testing::relative_l2(actual.lse, expected.lse), 1e-6);
}

INSTANTIATE_TEST_SUITE_P(shapes, DenseShapes,
                         ::testing::Values(Shape{1, 1, 1, 64}, Shape{127, 4, 1, 64},
                                           Shape{128, 8, 8, 128}, Shape{129, 8, 2, 128},
                                           Shape{700, 8, 1, 64}));

TEST(AttentionRef, fp64_is_closer_to_definition_than_fp32) {
  const AttentionInput input = testing::structured_input({300, 2, 1, 64});
  const DenseReference expected = testing::naive_dense(input);
  DenseReference none;
  const SparsePlan plan =
      find_method("dense").plan_cpu({.input = input, .reference = none}, ParamSet());
  std::vector<double> out(input.q.size());
  std::vector<double> lse(600);
  attention_ref(input.problem, PlanPointers(plan).view(), input.q.data(), input.k.data(),
                input.v.data(), out.data(), lse.data(), nullptr);
  double worst = 0.0;
  for (std::size_t i = 0; i < out.size(); ++i) {
    worst = std::max(worst, std::abs(out[i] - static_cast<double>(expected.out[i])));
  }
  EXPECT_LE(worst, 5e-7);  // the expectation itself is rounded to fp32
}

TEST(AttentionRef, empty_rows_give_zero_and_minus_infinity) {
  const AttentionInput input = testing::structured_input({256, 1, 1, 64});
  SparsePlan plan(input.problem, 128, 128);
  PlanBuilder builder(plan);
  builder.add(0, 1, {.begin = 200, .count = 20, .mask = MaskClass::kCausal});
  builder.finish(plan.passes[0]);
  const testing::Executed result = testing::execute(input, plan);
  for (int t = 0; t < 200; ++t) {
    EXPECT_EQ(result.lse[static_cast<std::size_t>(t)], -std::numeric_limits<float>::infinity())
        << t;
    EXPECT_EQ(result.out[static_cast<std::size_t>(t) * 64], 0.0f) << t;
  }
  EXPECT_TRUE(std::isfinite(result.lse[200]));
}

// Two passes that split the keys equal one pass over all of them: the merge is exact.
TEST(AttentionRef, second_pass_merges_exactly) {
  const AttentionInput input = testing::structured_input({512, 2, 1, 64});
  const DenseReference expected = testing::naive_dense(input);
  SparsePlan plan(input.problem, 128, 128);
  plan.passes.resize(2);
  PlanBuilder first(plan);
  PlanBuilder second(plan);
  for (int head = 0; head < 2; ++head) {
    for (int tile = 0; tile < 4; ++tile) {
      const TileRows rows = tile_rows(input.problem, plan.header, tile);
      first.add(head, tile, {.begin = rows.first_slot, .count = 128, .mask = MaskClass::kCausal});
      if (tile > 0) second.add(head, tile, {.count = static_cast<std::int32_t>(rows.first_slot)});
    }
  }
  first.finish(plan.passes[0]);
  second.finish(plan.passes[1]);
  check_plan(input.problem, plan);
  const testing::Executed result = testing::execute(input, plan);
  EXPECT_LE(testing::relative_l2(result.out, expected.out), 5e-6);
}

// Folding blocks of one key each is exact: mean k = k, mean v = v, log 1 = 0.
TEST(AttentionRef, fold_blocks_of_one_key_equal_dense) {
  const AttentionInput input = testing::structured_input({512, 2, 1, 64});
  const DenseReference expected = testing::naive_dense(input);
  for (const Compensation kind : {Compensation::kBlocks, Compensation::kBlocksVariance}) {
    SparsePlan plan(input.problem, 128, 128);
    plan.header.fold = {.kind = kind, .fold_block = 1};
    PlanBuilder builder(plan);
    for (int head = 0; head < 2; ++head) {
      for (int tile = 0; tile < 4; ++tile) {
        const TileRows rows = tile_rows(input.problem, plan.header, tile);
        // Part of the history is visited, the rest is folded.
        if (tile > 0) builder.add(head, tile, {.begin = 30, .count = 50});
        builder.add(head, tile,
                    {.begin = rows.first_slot, .count = 128, .mask = MaskClass::kCausal});
        plan.passes[0].fold_end.push_back(static_cast<std::int32_t>(rows.first_slot));
      }
    }
    builder.finish(plan.passes[0]);
    const testing::Executed result = testing::execute(input, plan);
    EXPECT_LE(testing::relative_l2(result.out, expected.out), 5e-6);
    EXPECT_EQ(result.stats[1].fold_columns, 128 - 50);
    EXPECT_EQ(result.stats[0].fold_columns, 0);
  }
}

// A folded column against its formula, for one row.
TEST(AttentionRef, fold_centroid_follows_formula) {
  const AttentionInput input = testing::structured_input({129, 1, 1, 64});
  SparsePlan plan(input.problem, 128, 128);
  plan.header.fold = {.kind = Compensation::kCentroid};
  PlanBuilder builder(plan);
  builder.add(0, 0, {.count = 128, .mask = MaskClass::kCausal});
  builder.add(0, 1, {.begin = 128, .count = 1, .mask = MaskClass::kCausal});
  builder.finish(plan.passes[0]);
  plan.passes[0].fold_end = {0, 128};
  const testing::Executed result = testing::execute(input, plan);

  const float* q = input.q_head(0) + 128 * 64;
  std::vector<double> mean_k(64, 0.0);
  std::vector<double> mean_v(64, 0.0);
  for (int x = 0; x < 128; ++x) {
    for (int i = 0; i < 64; ++i) {
      mean_k[static_cast<std::size_t>(i)] +=
          static_cast<double>(input.k[static_cast<std::size_t>(x * 64 + i)]) / 128;
      mean_v[static_cast<std::size_t>(i)] +=
          static_cast<double>(input.v[static_cast<std::size_t>(x * 64 + i)]) / 128;
    }
  }
  double folded = std::log(128.0);
  double own = 0.0;
  for (int i = 0; i < 64; ++i) {
    folded += static_cast<double>(q[i]) * mean_k[static_cast<std::size_t>(i)] / 8.0;
    own += static_cast<double>(q[i]) *
           static_cast<double>(input.k[128 * 64 + static_cast<std::size_t>(i)]) / 8.0;
  }
  const double weight = 1.0 / (1.0 + std::exp(folded - own));
  for (int i = 0; i < 64; ++i) {
    const double expected =
        weight * static_cast<double>(input.v[128 * 64 + static_cast<std::size_t>(i)]) +
        (1.0 - weight) * mean_v[static_cast<std::size_t>(i)];
    EXPECT_NEAR(result.out[128 * 64 + static_cast<std::size_t>(i)], expected, 1e-5);
  }
}

// Against the exact value for uniformly spread logits, and continuous where its branches meet.
TEST(AttentionRef, spread_logit_follows_uniform_spread) {
  for (double s = 0.1; s <= 2.0; s += 0.1) {
    const double x = std::sqrt(3.0) * s;
    EXPECT_NEAR(spread_logit(s * s), std::log(std::sinh(x) / x), 0.07) << s;
  }
  EXPECT_NEAR(spread_logit(1.0 - 1e-9), spread_logit(1.0 + 1e-9), 1e-8);
  EXPECT_EQ(spread_logit(0.0), 0.0);
}

TEST(AttentionRef, stop_rule_counts_the_small_step_and_honours_patience) {
  const AttentionInput input = testing::structured_input({1024, 1, 1, 64}, "uniform");
  const auto steps = [&input](float tau, int patience, int min_steps) {
    SparsePlan plan(input.problem, 128, 128);
    plan.header.stop = {.tau = tau, .patience = patience, .min_steps = min_steps};
    PlanBuilder builder(plan);
    builder.add(0, 7, {.begin = 896, .count = 128, .mask = MaskClass::kCausal});
    builder.add(0, 7, {.begin = 0, .count = 896, .stoppable = true});
    builder.finish(plan.passes[0]);
    return testing::execute(input, plan).stats[7].stop_steps;
  };
  // Uniform attention: rows hold 64.5 own keys on average, so the gain of step n is about
  // 128 / (64.5 + 128 n): .66, .40, .28, .22, .18, .15, .13.
  EXPECT_EQ(steps(0.0f, 1, 1), 7);
  EXPECT_EQ(steps(0.30f, 1, 1), 3);
  EXPECT_EQ(steps(0.30f, 2, 1), 4);
  EXPECT_EQ(steps(0.30f, 1, 5), 5);
  EXPECT_EQ(steps(0.99f, 1, 1), 1);
}

TEST(AttentionRef, packed_rows_equal_plain_rows) {
  const AttentionInput input = testing::structured_input({200, 6, 2, 64});
  const DenseReference expected = testing::naive_dense(input);
  SparsePlan plan(input.problem, 128, 64, /*pack=*/3);  // tiles end inside a position
  PlanBuilder builder(plan);
  for (int head = 0; head < 2; ++head) {
    for (int tile = 0; tile < plan.header.num_q_tiles; ++tile) {
      const TileRows rows = tile_rows(input.problem, plan.header, tile);
      builder.add(
          head, tile,
          {.count = static_cast<std::int32_t>(rows.last_position + 1), .mask = MaskClass::kCausal});
    }
  }
  builder.finish(plan.passes[0]);
  check_plan(input.problem, plan);
  const testing::Executed result = testing::execute(input, plan);
  EXPECT_LE(testing::relative_l2(result.out, expected.out), 5e-6);
}

}  // namespace
}  // namespace s2o
