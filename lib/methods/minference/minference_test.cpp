#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <numeric>

#include "lib/methods/common/last_queries.h"
#include "lib/methods/minference/minference.h"
#include "lib/testing/selections.h"

namespace s2o {
namespace {

using testing::blank_input;
using ::testing::ElementsAre;
using testing::plan_of;
using testing::visited_keys;

// count, count - 1, ... 0 after the given larger distances.
std::vector<std::int32_t> distances_with_local(std::vector<std::int32_t> far, std::int32_t local) {
  for (std::int32_t distance = local; distance >= 0; --distance) far.push_back(distance);
  return far;
}

std::vector<std::int32_t> columns_with_sink(const std::vector<std::int32_t>& others) {
  std::vector<std::int32_t> columns(30);
  std::iota(columns.begin(), columns.end(), 0);
  columns.insert(columns.end(), others.begin(), others.end());
  return columns;
}

std::vector<std::int64_t> window_starts(const MinferenceTile& tile) {
  std::vector<std::int64_t> starts;
  for (const MinferenceTile::Range& range : tile.ranges) {
    for (std::int64_t begin = range.begin; begin < range.end; begin += 64) starts.push_back(begin);
  }
  return starts;
}

// Trap 19: windows are unaligned, grow by 64 keys, and one distance costs a whole window.
TEST(MinferenceTileRule, windows_and_columns_of_a_late_tile) {
  const MinferenceTile tile = minference_tile(640, distances_with_local({900, 400}, 99),
                                              columns_with_sink({250, 600, 650, 700, 900}));
  EXPECT_THAT(window_starts(tile), ElementsAre(240, 541, 605, 669));
  EXPECT_EQ(tile.columns, columns_with_sink({}));
}

TEST(MinferenceTileRule, windows_of_an_early_tile_start_at_token_0) {
  const MinferenceTile tile = minference_tile(128, distances_with_local({300, 150}, 99), {});
  EXPECT_THAT(window_starts(tile), ElementsAre(0, 64, 128));
  EXPECT_TRUE(tile.columns.empty());
}

// Every wanted (query, key) pair is in a range or a column, once, for arbitrary selections.
TEST(MinferenceTileRule, covers_what_was_selected_without_repeats) {
  constexpr std::int64_t kSeqlen = 1500;
  for (std::uint64_t seed = 0; seed < 40; ++seed) {
    std::vector<float> mass(kSeqlen);
    for (std::size_t i = 0; i < mass.size(); ++i) {
      mass[i] = static_cast<float>(CounterRandom(seed, 1).uniform(i));
    }
    const auto count = static_cast<std::int64_t>(1 + seed * 17);
    const std::vector<std::int32_t> distances = minference_distances(mass, count);
    const std::vector<std::int32_t> columns = minference_columns(mass, count);
    const std::int64_t begin = CounterRandom(seed, 2).below(0, kSeqlen / 64) * 64;
    const MinferenceTile tile = minference_tile(begin, distances, columns);
    std::set<std::int64_t> keys(tile.columns.begin(), tile.columns.end());
    ASSERT_EQ(keys.size(), tile.columns.size());
    for (const std::int64_t column : keys) ASSERT_LT(column, begin);
    for (const std::int64_t start : window_starts(tile)) {
      for (std::int64_t key = start; key < start + 64; ++key) {
        ASSERT_TRUE(keys.insert(key).second) << "key " << key << " twice, seed " << seed;
      }
    }
    for (std::int64_t t = begin; t < begin + 64; ++t) {
      for (const std::int32_t distance : distances) {
        ASSERT_TRUE(distance > t || keys.contains(t - distance)) << t << " - " << distance;
      }
      for (const std::int32_t column : columns) {
        ASSERT_TRUE(column > t || keys.contains(column)) << column;
      }
    }
  }
}

// Trap 20: tokens 0-29 and distances 0-99 rank first, whatever their mass.
TEST(MinferenceRanking, sink_tokens_and_local_distances_are_forced) {
  std::vector<float> mass(400, 0.0f);
  mass[77] = 2.0f;
  mass[333] = 1.0f;
  EXPECT_EQ(minference_columns(mass, 31), columns_with_sink({77}));
  EXPECT_EQ(minference_distances(mass, 101), distances_with_local({333}, 99));
}

// Trap 20: a slash budget below 100 keeps the smallest distances, so a row keeps itself.
TEST(MinferenceRanking, short_slash_budget_keeps_the_nearest) {
  const std::vector<float> mass(400, 1.0f);
  EXPECT_EQ(minference_distances(mass, 50), distances_with_local({}, 49));
}

// Trap 18: the uniform published configuration.
TEST(Minference, defaults_are_the_uniform_llama_budgets) {
  const ParamSet params(find_method("minference").info().params);
  EXPECT_EQ(params.get_int("vertical_size"), 512);
  EXPECT_EQ(params.get_int("slash_size"), 2048);
  EXPECT_EQ(params.get_int("last_q"), 64);
  EXPECT_EQ(params.get_real("budget_scale"), 1.0);
}

TEST(Minference, one_stripe_becomes_one_column) {
  AttentionInput input = blank_input({1000, 2, 1, 64});
  testing::add_stripe(input, 0, 405, /*dim=*/0, 20.0f);
  testing::add_stripe(input, 1, 500, /*dim=*/1, 20.0f);  // same KV head, other query head
  const SparsePlan plan =
      plan_of("minference", input, {{"vertical_size", 31}, {"slash_size", 100}});
  check_plan(input.problem, plan);
  // Tile [896, 960): local windows from 960 - 99 - 64 on, then the columns.
  std::vector<std::int64_t> expected;
  for (std::int64_t key = 797; key < 960; ++key) expected.push_back(key);
  for (std::int64_t key = 0; key < 30; ++key) expected.push_back(key);
  expected.push_back(405);
  EXPECT_EQ(visited_keys(plan, 0, 14), expected);
  expected.back() = 500;
  EXPECT_EQ(visited_keys(plan, 1, 14), expected);
}

TEST(Minference, one_slash_becomes_one_window_per_tile) {
  AttentionInput input = blank_input({1000, 1, 1, 1000});
  testing::set_slash(input, 333, 20.0f);
  const SparsePlan plan =
      plan_of("minference", input, {{"vertical_size", 30}, {"slash_size", 101}});
  check_plan(input.problem, plan);
  std::vector<std::int64_t> expected;
  // The window of distance 333 ends at 960 - 333; locals as above; then the sink.
  for (std::int64_t key = 563; key < 627; ++key) expected.push_back(key);
  for (std::int64_t key = 797; key < 960; ++key) expected.push_back(key);
  for (std::int64_t key = 0; key < 30; ++key) expected.push_back(key);
  EXPECT_EQ(visited_keys(plan, 0, 14), expected);
}

// A key that only the last query looks at is found; one that only an earlier query looks at is not.
TEST(Minference, needle_is_found_by_the_last_queries_only) {
  AttentionInput input = blank_input({1000, 1, 1, 64});
  testing::q_row(input, 0, 999)[0] = 1.0f;
  testing::k_row(input, 0, 300)[0] = 200.0f;
  testing::q_row(input, 0, 900)[1] = 1.0f;
  testing::k_row(input, 0, 350)[1] = 200.0f;
  const SparsePlan plan =
      plan_of("minference", input, {{"vertical_size", 31}, {"slash_size", 100}});
  const std::vector<std::int64_t> keys = visited_keys(plan, 0, 14);
  EXPECT_TRUE(std::find(keys.begin(), keys.end(), 300) != keys.end());
  EXPECT_TRUE(std::find(keys.begin(), keys.end(), 350) == keys.end());
}

// Uniform attention: tokens that all last queries see have equal mass, so ties go to the first.
TEST(Minference, uniform_attention_keeps_the_first_columns) {
  const AttentionInput input = blank_input({1000, 1, 1, 64});
  const SparsePlan plan =
      plan_of("minference", input, {{"vertical_size", 200}, {"slash_size", 100}});
  std::vector<std::int64_t> expected;
  for (std::int64_t key = 797; key < 960; ++key) expected.push_back(key);
  for (std::int64_t key = 0; key < 200; ++key) expected.push_back(key);
  EXPECT_EQ(visited_keys(plan, 0, 14), expected);
}

// Trap 1: the last 64 positions, not the last aligned block of 64 (which starts at 960).
TEST(Minference, representatives_are_the_last_positions) {
  AttentionInput input = blank_input({1000, 1, 1, 64});
  testing::q_row(input, 0, 940)[0] = 1.0f;
  testing::k_row(input, 0, 300)[0] = 200.0f;
  const LastQuerySoftmax softmax =
      last_query_softmax(input, 0, 64, 1000, true, ScaleRounding::kLogit, Rounder());
  EXPECT_EQ(softmax.first_query, 936);
  const SparsePlan plan =
      plan_of("minference", input, {{"vertical_size", 31}, {"slash_size", 100}});
  const std::vector<std::int64_t> keys = visited_keys(plan, 0, 14);
  EXPECT_TRUE(std::find(keys.begin(), keys.end(), 300) != keys.end());
}

// Trap 21: the scaled logit is rounded, 14.125 against 14.1875; rounding the scaled query instead
// makes a tie that the first key wins.
TEST(Minference, estimate_rounds_the_scaled_logit) {
  const SparsePlan plan = plan_of("minference", testing::scale_rounding_input(256, 384),
                                  {{"vertical_size", 31}, {"slash_size", 100}});
  EXPECT_EQ(visited_keys(plan, 0, 14).back(), 384);
}

// Windows that every row of the tile sees carry no mask; all others do; columns never.
TEST(Minference, mask_classes_follow_positions) {
  const AttentionInput input = blank_input({1000, 1, 1, 64});
  const SparsePlan plan =
      plan_of("minference", input, {{"vertical_size", 31}, {"slash_size", 100}});
  const PlanPass& pass = plan.passes[0];
  const auto first = static_cast<std::size_t>(pass.item_offsets[14]);
  ASSERT_EQ(pass.item_offsets[15] - pass.item_offsets[14], 3);
  EXPECT_EQ(pass.items[first].begin, 797);
  EXPECT_EQ(pass.items[first].count, 64);
  EXPECT_EQ(pass.items[first].mask, MaskClass::kNone);
  EXPECT_EQ(pass.items[first + 1].begin, 861);
  EXPECT_EQ(pass.items[first + 1].count, 99);
  EXPECT_EQ(pass.items[first + 1].mask, MaskClass::kCausal);
  EXPECT_EQ(pass.items[first + 2].kind, ItemKind::kGather);
  EXPECT_EQ(pass.items[first + 2].mask, MaskClass::kNone);
}

TEST(Minference, plans_are_sound_at_ragged_lengths) {
  testing::expect_sound_plans("minference", nlohmann::ordered_json::object());
  testing::expect_sound_plans("minference", {{"budget_scale", 0.0}});
  testing::expect_sound_plans("minference", {{"budget_scale", 0.1}, {"rounding", "fp32"}});
}

TEST(Minference, budget_scale_multiplies_both_budgets) {
  const AttentionInput input = testing::structured_input({3000, 2, 1, 64});
  EXPECT_TRUE(testing::same_plan(
      plan_of("minference", input, {{"budget_scale", 0.25}}),
      plan_of("minference", input, {{"vertical_size", 128}, {"slash_size", 512}})));
}

}  // namespace
}  // namespace s2o
