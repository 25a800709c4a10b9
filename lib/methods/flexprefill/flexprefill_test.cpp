#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>

#include "lib/core/error.h"
#include "lib/methods/common/last_queries.h"
#include "lib/methods/flexprefill/flexprefill.h"
#include "lib/testing/selections.h"

namespace s2o {
namespace {

using testing::blank_input;
using ::testing::ElementsAre;
using testing::plan_of;
using testing::visited_blocks;
using Blocks = std::set<std::int64_t>;

std::vector<std::pair<int, int>> selected(const BlockMask& mask) {
  std::vector<std::pair<int, int>> blocks;
  for (int i = 0; i < mask.num_q_blocks(); ++i) {
    for (int j = 0; j < mask.num_kv_blocks(); ++j) {
      if (mask.at(i, j)) blocks.emplace_back(i, j);
    }
  }
  return blocks;
}

// Trap 2: the token counts keep the token that crosses gamma.
TEST(FlexPrefillRule, token_count_keeps_the_crossing_token) {
  const std::vector<float> mass = {0.125f, 0.5f, 0.125f, 0.25f};
  EXPECT_EQ(flexprefill_token_count(mass, 0.75), 3);
  EXPECT_EQ(flexprefill_token_count(mass, 0.7), 2);
}

// Trap 9: tokens become blocks by a literal 128, whatever the block size.
TEST(FlexPrefillRule, block_count_divides_by_128) {
  EXPECT_EQ(flexprefill_block_count(2, 1, 100), 1);
  EXPECT_EQ(flexprefill_block_count(3, 1, 100), 1);
  EXPECT_EQ(flexprefill_block_count(127, 1, 100), 1);
  EXPECT_EQ(flexprefill_block_count(128, 1, 100), 2);
}

// Trap 11: raised to the minimum first, then cut to the sequence.
TEST(FlexPrefillRule, block_count_is_raised_then_cut) {
  EXPECT_EQ(flexprefill_block_count(10, 5, 8), 5);
  EXPECT_EQ(flexprefill_block_count(10, 50, 8), 8);
  EXPECT_EQ(flexprefill_block_count(5000, 5, 8), 8);
}

// Trap 10: bins start at the largest distance; with 300 tokens bin 2 holds distances 0..43 only.
TEST(FlexPrefillRule, diagonal_bins_start_at_the_largest_distance) {
  std::vector<float> by_distance(300, 0.0f);
  by_distance[43] = 1.0f;
  by_distance[44] = 2.0f;
  by_distance[171] = 4.0f;
  by_distance[172] = 8.0f;
  EXPECT_THAT(flexprefill_diagonal_mass(by_distance, 128), ElementsAre(8.0f, 6.0f, 1.0f));
  EXPECT_THAT(flexprefill_column_mass(by_distance, 128), ElementsAre(3.0f, 12.0f, 0.0f));
}

// Trap 12: square root, natural logs.
TEST(FlexPrefillRule, js_distance_is_the_root_in_nats) {
  const std::vector<float> estimated = {0.5f, 0.5f};
  EXPECT_NEAR(flexprefill_js_distance(estimated, std::vector<float>{0.9f, 0.1f}), 0.3189815, 1e-6);
  EXPECT_EQ(flexprefill_js_distance(estimated, estimated), 0.0);
}

// Trap 12: no epsilon, so that an exact zero is NaN, which is below no tau.
TEST(FlexPrefillRule, js_distance_of_an_exact_zero_is_nan) {
  const std::vector<float> one_hot = {1.0f, 0.0f};
  EXPECT_TRUE(std::isnan(flexprefill_js_distance(one_hot, one_hot)));
  EXPECT_TRUE(std::isnan(flexprefill_js_distance(std::vector<float>{0.5f, 0.5f}, one_hot)));
}

// Traps 2 and 3: all rows together against gamma * T, the crossing block dropped.
TEST(FlexPrefillRule, query_aware_blocks_compete_across_rows) {
  BlockMask mask(2, 2);
  flexprefill_select_query_aware(std::vector<float>{1.0f, 0.0f, 0.75f, 0.25f}, 0.9, mask);
  EXPECT_THAT(selected(mask), ElementsAre(std::pair(0, 0), std::pair(1, 0)));
  // A target per row would have given (0,0), (1,0), (1,1); a lower one reaches into one row only.
  BlockMask half(2, 2);
  flexprefill_select_query_aware(std::vector<float>{1.0f, 0.0f, 0.75f, 0.25f}, 0.5, half);
  EXPECT_THAT(selected(half), ElementsAre(std::pair(0, 0)));
}

// Trap 11: column 0 and the main diagonal take the first place of each budget.
TEST(FlexPrefillRule, forced_column_and_diagonal_count_in_the_budget) {
  BlockMask mask(4, 4);
  const std::vector<float> columns = {0.0f, 0.1f, 0.9f, 0.0f};
  const std::vector<float> diagonals = {0.0f, 0.9f, 0.1f, 0.0f};  // bin 1 is block diagonal 2
  flexprefill_select_vertical_slash(columns, diagonals, 1, 1, mask);
  EXPECT_THAT(selected(mask),
              ElementsAre(std::pair(0, 0), std::pair(1, 0), std::pair(1, 1), std::pair(2, 0),
                          std::pair(2, 2), std::pair(3, 0), std::pair(3, 3)));
  BlockMask more(4, 4);
  flexprefill_select_vertical_slash(columns, diagonals, 2, 2, more);
  EXPECT_TRUE(more.at(3, 2));
  EXPECT_TRUE(more.at(3, 1));
  EXPECT_TRUE(more.at(2, 0));
  EXPECT_FALSE(more.at(2, 1));
}

TEST(FlexPrefill, one_stripe_becomes_one_column) {
  AttentionInput input = blank_input({1000, 2, 1, 64});
  testing::add_stripe(input, 0, 405, /*dim=*/0, 30.0f);
  testing::add_stripe(input, 1, 700, /*dim=*/1, 30.0f);
  const nlohmann::ordered_json params = {{"gamma", 0.9}, {"tau", 0.0}, {"min_budget", 256}};
  const SparsePlan plan = plan_of("flexprefill", input, params);
  check_plan(input.problem, plan);
  // Two columns: 0 and that of the stripe. Two diagonals: the main one, and 4, where the last
  // queries (872 to 999) meet token 405 most often.
  EXPECT_EQ(visited_blocks(plan, 0, 7), (Blocks{0, 3, 7}));
  EXPECT_EQ(visited_blocks(plan, 0, 6), (Blocks{0, 2, 3, 6}));
  EXPECT_EQ(visited_blocks(plan, 0, 2), (Blocks{0, 2}));
  EXPECT_TRUE(visited_blocks(plan, 1, 7).contains(5));
  EXPECT_TRUE(visited_blocks(plan, 1, 6).contains(5));
  EXPECT_FALSE(visited_blocks(plan, 1, 6).contains(3));
}

// Trap 10 again: distance 363 straddles block diagonals 2 and 3; of the two, the bins of 1000
// tokens choose 3, those counted from distance 0 would choose 2.
TEST(FlexPrefill, one_slash_becomes_one_diagonal) {
  AttentionInput input = blank_input({1000, 1, 1, 1000});
  testing::set_slash(input, 363, 30.0f);
  const SparsePlan plan =
      plan_of("flexprefill", input, {{"gamma", 0.9}, {"tau", 0.0}, {"min_budget", 256}});
  check_plan(input.problem, plan);
  // The column budget takes block 4, which holds most of keys 872 - 363 to 999 - 363.
  EXPECT_EQ(visited_blocks(plan, 0, 7), (Blocks{0, 4, 7}));
  EXPECT_EQ(visited_blocks(plan, 0, 6), (Blocks{0, 3, 4, 6}));
  EXPECT_EQ(visited_blocks(plan, 0, 3), (Blocks{0, 3}));
}

// Uniform attention: the pooled estimate is right, so the head is query aware.
TEST(FlexPrefill, uniform_attention_fills_rows_from_the_shortest) {
  const AttentionInput input = blank_input({1024, 1, 1, 64});
  const SparsePlan plan =
      plan_of("flexprefill", input, {{"gamma", 0.9}, {"tau", 0.1}, {"min_budget", 256}});
  // Seven rows hold 7 of the target 7.2; one block of 1/8 fits, two do not. Columns 0, 1 and
  // diagonals 0, 6 come from the minimum budget.
  for (int i = 0; i < 7; ++i) EXPECT_EQ(visited_blocks(plan, 0, i), testing::blocks_below(i + 1));
  EXPECT_EQ(visited_blocks(plan, 0, 7), (Blocks{0, 1, 7}));
}

AttentionInput two_loud_blocks(float logit) {
  AttentionInput input = blank_input({1024, 1, 1, 64});
  testing::set_query_dim(input, 0, 0, 1024, 0);
  testing::set_key_logit(input, 0, 3 * 128, 4 * 128, 0, logit);
  testing::set_key_logit(input, 0, 5 * 128, 6 * 128, 0, logit);
  return input;
}

TEST(FlexPrefill, query_aware_head_finds_needle_blocks_per_row) {
  const SparsePlan plan = plan_of("flexprefill", two_loud_blocks(20.0f),
                                  {{"gamma", 0.9}, {"tau", 0.1}, {"min_budget", 1}});
  EXPECT_EQ(visited_blocks(plan, 0, 7), (Blocks{0, 3, 5, 7}));
  EXPECT_EQ(visited_blocks(plan, 0, 6), (Blocks{0, 3, 5, 6}));
  EXPECT_EQ(visited_blocks(plan, 0, 4), (Blocks{0, 3, 4}));
}

// Trap 12: with exact zeros the same head is vertical-slash: 231 tokens make 2 columns (0 and 3),
// about 350 distances 3 diagonals (0, 4 and 2).
TEST(FlexPrefill, exact_zeros_make_a_head_vertical_slash) {
  const SparsePlan plan = plan_of("flexprefill", two_loud_blocks(200.0f),
                                  {{"gamma", 0.9}, {"tau", 0.1}, {"min_budget", 1}});
  EXPECT_EQ(visited_blocks(plan, 0, 7), (Blocks{0, 3, 5, 7}));
  EXPECT_EQ(visited_blocks(plan, 0, 6), (Blocks{0, 2, 3, 4, 6}));
}

// Trap 17: the last pooled query is brought back to the mean of its real tokens. Block 1 holds
// .9526, .9095 ... .7416 of rows 1..7 and row 0 all of its own, 6.878 in all: too much for .85 * 8.
// Diluted by zeros the last row would hold .62 and stay.
TEST(FlexPrefill, partial_last_query_block_is_rescaled) {
  AttentionInput input = blank_input({1000, 1, 1, 64});
  testing::set_query_dim(input, 0, 0, 1000, 0);
  testing::set_key_logit(input, 0, 128, 256, 0, 3.0f);
  const SparsePlan plan =
      plan_of("flexprefill", input, {{"gamma", 0.85}, {"tau", 1.0}, {"min_budget", 1}});
  EXPECT_EQ(visited_blocks(plan, 0, 6), (Blocks{0, 1, 6}));
  EXPECT_EQ(visited_blocks(plan, 0, 7), (Blocks{0, 7}));
}

// Trap 1: queries 872 to 895 are among the last 128 positions, though in the block before the last.
TEST(FlexPrefill, representatives_are_the_last_positions) {
  AttentionInput input = blank_input({1000, 1, 1, 64});
  testing::set_query_dim(input, 0, 872, 896, 0);
  testing::set_key_logit(input, 0, 256, 384, 0, 20.0f);
  const SparsePlan plan =
      plan_of("flexprefill", input, {{"gamma", 0.1}, {"tau", 0.0}, {"min_budget", 256}});
  EXPECT_EQ(visited_blocks(plan, 0, 7), (Blocks{0, 2, 3, 7}));
}

// Trap 1 in the pattern test: the pooled query is that of the same positions, 104 of which attend
// to block 2 with e^2. Pooled over block 6 it would be uniform, and the head vertical-slash with
// six columns. Query aware: row 7 keeps block 2 (.51), row 6 four of its sevenths.
TEST(FlexPrefill, pattern_test_pools_the_last_positions) {
  AttentionInput input = blank_input({1000, 1, 1, 64});
  testing::set_query_dim(input, 0, 896, 1000, 0);
  testing::set_key_logit(input, 0, 256, 384, 0, 2.0f);
  const SparsePlan plan =
      plan_of("flexprefill", input, {{"gamma", 0.9}, {"tau", 0.17}, {"min_budget", 1}});
  EXPECT_EQ(visited_blocks(plan, 0, 7), (Blocks{0, 2, 7}));
  EXPECT_EQ(visited_blocks(plan, 0, 6), (Blocks{0, 1, 2, 3, 6}));
}

// Trap 9: with 64-token blocks 231 tokens are still 2 columns (0 and 6), 350 distances 3 diagonals
// (0, 4 and 8).
TEST(FlexPrefill, token_budget_of_small_blocks_is_divided_by_128) {
  const SparsePlan plan =
      plan_of("flexprefill", two_loud_blocks(200.0f),
              {{"gamma", 0.9}, {"tau", 0.0}, {"min_budget", 1}, {"block_size", 64}});
  EXPECT_EQ(visited_blocks(plan, 0, 13), (Blocks{0, 5, 6, 9, 13}));
}

// Trap 21: the scaled query is rounded, so 1 * 100 and 3 * 33.5 tie at 14.1875 and the lower block
// wins. Rounding the scaled logit instead gives 14.125 and 14.1875.
TEST(FlexPrefill, estimate_rounds_the_scaled_query) {
  const SparsePlan plan = plan_of("flexprefill", testing::scale_rounding_input(256, 384),
                                  {{"gamma", 0.0}, {"tau", 0.0}, {"min_budget", 256}});
  EXPECT_TRUE(visited_blocks(plan, 0, 5).contains(2));
  EXPECT_FALSE(visited_blocks(plan, 0, 5).contains(3));
}

TEST(FlexPrefill, dense_up_to_the_minimum_budget) {
  const AttentionInput within = blank_input({1024, 1, 1, 64});
  const SparsePlan dense = plan_of("flexprefill", within, {{"gamma", 0.0}, {"tau", 0.0}});
  for (int i = 0; i < 8; ++i) EXPECT_EQ(visited_blocks(dense, 0, i), testing::blocks_below(i + 1));
}

// The budget holds for columns and diagonals each: 8 of either at the default.
TEST(FlexPrefill, minimum_budget_is_a_density_floor) {
  AttentionInput input = blank_input({8192, 1, 1, 8});
  testing::add_stripe(input, 0, 5, 0, 30.0f);
  const SparsePlan plan = plan_of("flexprefill", input, {{"gamma", 0.0}});
  check_plan(input.problem, plan);
  const std::size_t blocks = visited_blocks(plan, 0, 63).size();
  EXPECT_GE(blocks, 8u);
  EXPECT_LE(blocks, 16u);
}

TEST(FlexPrefill, compensation_restores_uniform_attention) {
  AttentionInput input = blank_input({1024, 2, 1, 64});
  const DenseReference dense = testing::naive_dense(input);
  const nlohmann::ordered_json params = {
      {"gamma", 0.3}, {"min_budget", 1}, {"compensation", "centroid"}};
  const SparsePlan plan = plan_of("flexprefill", input, params);
  check_plan(input.problem, plan);
  EXPECT_LT(visited_blocks(plan, 0, 7).size(), 8u);
  EXPECT_LE(testing::relative_l2(testing::execute(input, plan).out, dense.out), 1e-5);
}

TEST(FlexPrefill, block_size_must_be_a_power_of_two) {
  EXPECT_THROW(plan_of("flexprefill", blank_input({300, 1, 1, 64}), {{"block_size", 48}}),
               ConfigError);
}

TEST(FlexPrefill, plans_are_sound_at_ragged_lengths) {
  testing::expect_sound_plans("flexprefill", nlohmann::ordered_json::object());
  testing::expect_sound_plans("flexprefill", {{"min_budget", 1}, {"gamma", 0.5}, {"tau", 1.0}});
  testing::expect_sound_plans(
      "flexprefill",
      {{"min_budget", 1}, {"block_size", 64}, {"rounding", "fp32"}, {"compensation", "blocks"}});
}

}  // namespace
}  // namespace s2o
