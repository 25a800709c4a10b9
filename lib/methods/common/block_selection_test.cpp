#include "lib/methods/common/block_selection.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "lib/methods/common/device_planning.h"
#include "lib/methods/common/last_queries.h"
#include "lib/testing/selections.h"

namespace s2o {
namespace {

using ::testing::ElementsAre;
using ::testing::FloatNear;

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

TEST(Rounder, follows_the_storage_type) {
  const float x = 1.0f + 0x1p-9f + 0x1p-12f;
  EXPECT_EQ(Rounder()(x), x);
  EXPECT_EQ(Rounder(StorageDType::kF32)(x), x);
  EXPECT_EQ(Rounder(StorageDType::kF16)(x), 1.0f + 0x1p-9f);
  EXPECT_EQ(Rounder(StorageDType::kBF16)(x), 1.0f);
  std::vector<float> values = {x, -x};
  Rounder(StorageDType::kBF16).apply(values);
  EXPECT_THAT(values, ElementsAre(1.0f, -1.0f));
}

// Trap 17: what a partial last block is divided by.
TEST(PooledMeans, partial_block_is_divided_as_asked) {
  const std::vector<float> x = {1.0f, 3.0f, 6.0f};
  EXPECT_THAT(pooled_means(x.data(), 3, 1, 2, PoolDivisor::kRealTokens, Rounder()),
              ElementsAre(2.0f, 6.0f));
  EXPECT_THAT(pooled_means(x.data(), 3, 1, 2, PoolDivisor::kBlock, Rounder()),
              ElementsAre(2.0f, 3.0f));
}

TEST(PooledMeans, round_once_after_an_fp32_sum) {
  // In bf16 arithmetic 256 + 1 stays 256 and the mean would be 128.
  const std::vector<float> x = {256.0f, 1.0f, 1.0f, 2.0f};
  EXPECT_THAT(pooled_means(x.data(), 4, 1, 4, PoolDivisor::kBlock, Rounder(StorageDType::kBF16)),
              ElementsAre(65.0f));
}

TEST(SoftmaxRow, masked_entries_are_exactly_zero) {
  std::vector<float> row = {0.0f, -kInfinity, std::log(3.0f)};
  EXPECT_TRUE(softmax_row(row));
  EXPECT_THAT(row, ElementsAre(FloatNear(0.25f, 1e-6f), 0.0f, FloatNear(0.75f, 1e-6f)));
}

TEST(SoftmaxRow, without_a_finite_entry_is_zero_and_says_so) {
  std::vector<float> masked = {-kInfinity, -kInfinity};
  EXPECT_FALSE(softmax_row(masked));
  EXPECT_THAT(masked, ElementsAre(0.0f, 0.0f));
  std::vector<float> not_a_number = {1.0f, kNan};
  EXPECT_FALSE(softmax_row(not_a_number));
  EXPECT_THAT(not_a_number, ElementsAre(0.0f, 0.0f));
}

TEST(Ranking, ties_by_lower_index_and_nan_last) {
  const std::vector<float> scores = {0.0f, kNan, 2.0f, -0.0f, kInfinity, 2.0f, -kInfinity, -1.0f};
  EXPECT_THAT(order_descending(scores), ElementsAre(4, 2, 5, 0, 3, 7, 6, 1));
  EXPECT_THAT(top_indices(scores, 3), ElementsAre(4, 2, 5));
  EXPECT_EQ(top_indices(scores, 99).size(), scores.size());
  EXPECT_TRUE(top_indices(scores, 0).empty());
}

// Trap 2: PBS-Attn and mean pooling keep the item that crosses.
TEST(TopCdf, cross_in_keeps_the_crossing_item) {
  const std::vector<float> p = {0.5f, 0.25f, 0.125f, 0.125f};
  EXPECT_EQ(cross_in_count(p, 0.75f), 2);
  EXPECT_EQ(cross_in_count(p, 0.8f), 3);
  EXPECT_EQ(cross_in_count(p, 0.5f), 1);
}

TEST(TopCdf, cross_in_says_when_the_target_is_out_of_reach) {
  EXPECT_EQ(cross_in_count(std::vector<float>(4, 0.0f), 0.1f), std::nullopt);
}

// Trap 2: SpargeAttn and query-aware FlexPrefill drop it.
TEST(TopCdf, cross_out_drops_the_crossing_item) {
  const std::vector<float> p = {0.5f, 0.25f, 0.125f, 0.125f};
  EXPECT_EQ(cross_out_count(p, 0.75f), 2);
  EXPECT_EQ(cross_out_count(p, 0.8f), 2);
  EXPECT_EQ(cross_out_count(p, 0.4f), 0);
}

TEST(TopCdf, long_running_sums_do_not_drift) {
  // 2^20 items of 2^-25 after a 1: a plain fp32 sum would stay at 1 for ever.
  std::vector<float> p(1 + (1 << 20), 0x1p-25f);
  p[0] = 1.0f;
  EXPECT_NEAR(static_cast<double>(cross_out_count(p, 1.0f + 0x1p-10f)), 1 << 15, 8.0);
}

TEST(BlockMaskPlan, merges_neighbours_and_drops_the_future) {
  const AttentionInput input = testing::blank_input({300, 1, 1, 64});
  BlockMask mask(3, 3);
  mask.fill();
  const SparsePlan plan = plan_from_block_masks(input.problem, 128, 128, {mask});
  check_plan(input.problem, plan);
  EXPECT_EQ(testing::visited_blocks(plan, 0, 0), testing::blocks_below(1));
  EXPECT_EQ(testing::visited_keys(plan, 0, 2).size(), 300u);
  // One run of the past and one of the diagonal.
  EXPECT_THAT(plan.passes[0].item_offsets, ElementsAre(0, 1, 3, 5));
}

TEST(CompensationRule, folds_only_blocks_wholly_in_the_past) {
  const AttentionInput input = testing::blank_input({300, 2, 1, 64});
  const std::vector<ParamSpec> specs = {compensation_spec()};
  ParamSet params(specs);
  SparsePlan plan(input.problem, 64, 128);
  apply_fold(planned_fold(params, 128), input.problem, plan);
  EXPECT_EQ(plan.header.fold.kind, Compensation::kNone);
  EXPECT_TRUE(plan.passes[0].fold_end.empty());
  params.set(specs, "compensation", "blocks_variance", "test");
  apply_fold(planned_fold(params, 128), input.problem, plan);
  EXPECT_EQ(plan.header.fold.kind, Compensation::kBlocksVariance);
  EXPECT_EQ(plan.header.fold.fold_block, 128);
  EXPECT_THAT(plan.passes[0].fold_end, ElementsAre(0, 0, 128, 128, 256, 0, 0, 128, 128, 256));
}

// Trap 21: FlexPrefill rounds the scaled query, MInference and PBS-Attn the scaled logit.
TEST(LastQuerySoftmax, scale_is_rounded_where_the_method_says) {
  AttentionInput input = testing::blank_input({2, 1, 1, 50}, StorageDType::kBF16);
  testing::q_row(input, 0, 1)[0] = 1.0f;
  testing::k_row(input, 0, 0)[0] = 100.0f;
  const float scale = input.problem.softmax_scale;  // 0.141421..., not a bf16 value
  const Rounder round(StorageDType::kBF16);
  const auto first_key = [&](ScaleRounding scale_rounding) {
    return last_query_softmax(input, 0, 1, 2, true, scale_rounding, round).probability[0];
  };
  const auto sigmoid = [](float x) { return 1.0f / (1.0f + std::exp(-x)); };
  const float by_query = round(round(scale) * 100.0f);
  const float by_logit = round(100.0f * scale);
  ASSERT_NE(by_query, by_logit);
  EXPECT_FLOAT_EQ(first_key(ScaleRounding::kQuery), sigmoid(by_query));
  EXPECT_FLOAT_EQ(first_key(ScaleRounding::kLogit), sigmoid(by_logit));
}

TEST(LastQuerySoftmax, causal_mask_and_masses) {
  const AttentionInput input = testing::blank_input({5, 1, 1, 64});
  const LastQuerySoftmax softmax =
      last_query_softmax(input, 0, 2, 5, /*causal=*/true, ScaleRounding::kLogit, Rounder());
  EXPECT_EQ(softmax.first_query, 3);
  const float fourth = 0.25f;
  const float fifth = 0.2f;
  EXPECT_THAT(mass_by_key(softmax),
              ElementsAre(fourth + fifth, fourth + fifth, fourth + fifth, fourth + fifth, fifth));
  EXPECT_THAT(mass_by_distance(softmax),
              ElementsAre(fourth + fifth, fourth + fifth, fourth + fifth, fourth + fifth, fifth));
  const LastQuerySoftmax square =
      last_query_softmax(input, 0, 2, 5, /*causal=*/false, ScaleRounding::kLogit, Rounder());
  EXPECT_EQ(square.probability[4], fifth);
}

}  // namespace
}  // namespace s2o
