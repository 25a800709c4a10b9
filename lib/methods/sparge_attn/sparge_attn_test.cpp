#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>

#include "lib/methods/sparge_attn/sparge_attn.h"
#include "lib/testing/selections.h"

namespace s2o {
namespace {

using testing::blank_input;
using ::testing::ElementsAre;
using testing::plan_of;
using testing::visited_blocks;
using Blocks = std::set<std::int64_t>;

const Rounder kBf16(StorageDType::kBF16);

Blocks row_of(std::vector<float> scores, const std::vector<std::uint8_t>& key_similar,
              bool query_similar, std::int64_t num_causal, const SpargeBudget& budget,
              const Rounder& round = Rounder()) {
  std::vector<std::uint8_t> selected(scores.size(), 0);
  sparge_select_row(scores, key_similar, query_similar, num_causal, budget, round, selected.data());
  Blocks blocks;
  for (std::size_t j = 0; j < selected.size(); ++j) {
    if (selected[j] != 0) blocks.insert(static_cast<std::int64_t>(j));
  }
  return blocks;
}

// Trap 2: the block that crosses is dropped, but one block always stays.
TEST(SpargeRule, cdf_drops_the_crossing_block) {
  const std::vector<float> p = {0.5f, 0.25f, 0.125f, 0.125f};
  EXPECT_EQ(sparge_row_count(p, {.cdfthreshd = 0.75}, Rounder()), 2);
  EXPECT_EQ(sparge_row_count(p, {.cdfthreshd = 0.8}, Rounder()), 2);
  EXPECT_EQ(sparge_row_count(p, {.cdfthreshd = 0.4}, Rounder()), 1);
}

// Trap 23: top-k counts all key blocks, causal or not.
TEST(SpargeRule, topk_counts_all_key_blocks) {
  const std::vector<float> p(10, 0.1f);
  EXPECT_EQ(sparge_row_count(p, {.topk = 0.25}, Rounder()), 2);
  EXPECT_EQ(sparge_row_count(p, {.topk = 0.0}, Rounder()), 1);
  EXPECT_EQ(sparge_row_count(std::vector<float>(100, 0.01f), {.topk = 0.29}, Rounder()), 29);
  // Two ranked, one of them not causal.
  EXPECT_EQ(row_of(std::vector<float>(10, 1.0f), std::vector<std::uint8_t>(10, 1), true, 1,
                   {.topk = 0.25}),
            (Blocks{0}));
}

// Trap 25: running sums in bf16 move in steps of 2^-8 below 1.
TEST(SpargeRule, running_sums_are_rounded_at_level_a) {
  std::vector<float> p(9, 0x1p-11f);
  p[0] = 1.0f - 0x1p-8f;
  EXPECT_EQ(sparge_row_count(p, {.cdfthreshd = 0.997}, Rounder()), 2);
  EXPECT_EQ(sparge_row_count(p, {.cdfthreshd = 0.997}, kBf16), 4);
  EXPECT_EQ(sparge_row_count(p, {.cdfthreshd = 0.9999}, kBf16), 4);
}

// Trap 25: equal fifths are .2002 in bf16; two of them make .4004 and three .6016 (.6006 exactly).
// Equal thirds are .3340, two of them .6680.
TEST(SpargeRule, softmax_and_running_sums_are_rounded) {
  const auto count = [](std::size_t blocks, double cdfthreshd, const Rounder& round) {
    return row_of(std::vector<float>(blocks, 1.0f), std::vector<std::uint8_t>(blocks, 1), true,
                  static_cast<std::int64_t>(blocks), {.cdfthreshd = cdfthreshd}, round)
        .size();
  };
  EXPECT_EQ(count(5, 0.601, Rounder()), 3u);
  EXPECT_EQ(count(5, 0.601, kBf16), 2u);
  EXPECT_EQ(count(3, 0.667, Rounder()), 2u);
  EXPECT_EQ(count(3, 0.667, kBf16), 1u);
}

// Trap 22: with 64x128 tiles two query blocks share a causal limit; with 128x64 each adds two.
TEST(SpargeRule, causal_blocks_of_both_tiles) {
  EXPECT_EQ(sparge_causal_blocks(0, 64, 128, 99), 1);
  EXPECT_EQ(sparge_causal_blocks(1, 64, 128, 99), 1);
  EXPECT_EQ(sparge_causal_blocks(2, 64, 128, 99), 2);
  EXPECT_EQ(sparge_causal_blocks(3, 64, 128, 99), 2);
  EXPECT_EQ(sparge_causal_blocks(0, 128, 64, 99), 2);
  EXPECT_EQ(sparge_causal_blocks(3, 128, 64, 99), 8);
  EXPECT_EQ(sparge_causal_blocks(3, 128, 64, 7), 7);
}

TEST(SpargeRule, blocks_that_are_not_similar_are_dense) {
  const std::vector<float> scores = {1.0f, 9.0f, 3.0f, 2.0f};
  const std::vector<std::uint8_t> all = {1, 1, 1, 1};
  EXPECT_EQ(row_of(scores, all, true, 4, {.topk = 0.25}), (Blocks{1}));
  // A dense key column is not ranked: the budget goes to the others.
  EXPECT_EQ(row_of(scores, {1, 0, 1, 1}, true, 4, {.topk = 0.25}), (Blocks{1, 2}));
  EXPECT_EQ(row_of(scores, all, false, 3, {.topk = 0.25}), (Blocks{0, 1, 2}));
  // Nothing to rank selects everything.
  EXPECT_EQ(row_of(scores, {0, 0, 0, 1}, true, 3, {.topk = 0.25}), (Blocks{0, 1, 2}));
}

TEST(SpargeRule, self_similarity_is_the_mean_cosine_of_all_pairs) {
  const std::vector<float> same = {3.0f, 4.0f, 6.0f, 8.0f};
  EXPECT_NEAR(sparge_self_similarity(same.data(), 2, 2, false), 1.0f, 1e-6f);
  const std::vector<float> orthogonal = {1.0f, 0.0f, 0.0f, 5.0f};
  EXPECT_NEAR(sparge_self_similarity(orthogonal.data(), 2, 2, false), 0.5f, 1e-6f);
  const std::vector<float> zero_row = {1.0f, 0.0f, 0.0f, 0.0f};
  EXPECT_TRUE(std::isnan(sparge_self_similarity(zero_row.data(), 2, 2, false)));
  // Unit rows in fp16: .6 and .8 become .60009765625 and .7998046875.
  const float rounded = 0.60009765625f * 0.60009765625f + 0.7998046875f * 0.7998046875f;
  EXPECT_FLOAT_EQ(sparge_self_similarity(same.data(), 2, 2, true), rounded);
}

// Trap 23: topk .5 leaves about three quarters of the causal blocks: here 200 of 272.
TEST(SpargeAttn, half_of_all_blocks_is_most_of_the_causal_ones) {
  const AttentionInput input = testing::structured_input({2048, 2, 1, 64});
  const SparsePlan plan = plan_of("sparge_attn", input);
  const testing::Executed result = testing::execute(input, plan);
  EXPECT_DOUBLE_EQ(count_work(input.problem, plan, result.stats).total.compute_density(),
                   200.0 / 272.0);
}

TEST(SpargeAttn, one_stripe_becomes_one_column) {
  AttentionInput input = blank_input({1024, 2, 1, 64});
  testing::add_stripe(input, 0, 405, /*dim=*/0, 640.0f);
  testing::add_stripe(input, 1, 700, /*dim=*/1, 640.0f);
  const SparsePlan plan = plan_of("sparge_attn", input, {{"topk", 0.125}});
  check_plan(input.problem, plan);
  // Two of sixteen: the stripe's block and, all others equal, block 0.
  EXPECT_EQ(visited_blocks(plan, 0, 7), (Blocks{0, 6}));
  EXPECT_EQ(visited_blocks(plan, 0, 3), (Blocks{0, 6}));
  EXPECT_EQ(visited_blocks(plan, 0, 2), (Blocks{0, 1}));
  EXPECT_EQ(visited_blocks(plan, 1, 7), (Blocks{0, 10}));
}

// Trap 26: nothing is forced, not even the diagonal. cdfthreshd replaces topk.
TEST(SpargeAttn, cdf_forces_no_diagonal) {
  AttentionInput input = blank_input({1024, 1, 1, 64});
  testing::add_stripe(input, 0, 405, /*dim=*/0, 640.0f);
  const SparsePlan plan = plan_of("sparge_attn", input, {{"topk", 1.0}, {"cdfthreshd", 0.9}});
  EXPECT_EQ(visited_blocks(plan, 0, 7), (Blocks{6}));
  // Rows before the stripe see n equal blocks and keep those whose running sum stays below .9.
  EXPECT_EQ(visited_blocks(plan, 0, 0), (Blocks{0}));
  EXPECT_EQ(visited_blocks(plan, 0, 1), (Blocks{0, 1, 2}));
  EXPECT_EQ(visited_blocks(plan, 0, 2), (Blocks{0, 1, 2, 3, 4}));
}

TEST(SpargeAttn, sink_switch_adds_the_first_block_of_every_row) {
  AttentionInput input = blank_input({1024, 1, 1, 64});
  testing::add_stripe(input, 0, 405, /*dim=*/0, 640.0f);
  for (const char* tile : {"128x64", "64x128"}) {
    const nlohmann::ordered_json params = {{"topk", 0.0}, {"tile", tile}};
    nlohmann::ordered_json with_sink = params;
    with_sink["attention_sink"] = true;
    const SparsePlan plain = plan_of("sparge_attn", input, params);
    const SparsePlan sink = plan_of("sparge_attn", input, with_sink);
    check_plan(input.problem, sink);
    const std::int64_t num_rows = plain.num_tiles();
    for (std::int64_t row = 0; row < num_rows; ++row) {
      Blocks expected = visited_blocks(plain, 0, row);
      expected.insert(0);
      EXPECT_EQ(visited_blocks(sink, 0, row), expected) << tile << ", row " << row;
    }
  }
}

// Block diagonal 2 of 128 tokens: distance 256 puts each tile's mass on two 64-key blocks.
TEST(SpargeAttn, one_slash_becomes_one_block_diagonal) {
  AttentionInput input = blank_input({1024, 1, 1, 1024});
  testing::set_slash(input, 256, 2048.0f);
  // Queries that meet nothing get a direction of their own, or their zero rows would be dense.
  for (std::int64_t t = 0; t < 256; ++t) testing::q_row(input, 0, t)[1023] = 1e-6f;
  const SparsePlan plan = plan_of("sparge_attn", input, {{"topk", 0.125}});
  check_plan(input.problem, plan);
  EXPECT_EQ(visited_blocks(plan, 0, 5), (Blocks{6, 7}));
  EXPECT_EQ(visited_blocks(plan, 0, 2), (Blocks{0, 1}));
}

TEST(SpargeAttn, needle_block_is_found_by_its_query_block_only) {
  AttentionInput input = blank_input({1024, 1, 1, 64});
  testing::set_query_dim(input, 0, 0, 1024, 0);
  testing::set_query_dim(input, 0, 5 * 128, 6 * 128, 1);
  testing::set_key_logit(input, 0, 3 * 64, 4 * 64, 1, 20.0f);
  const SparsePlan plan = plan_of("sparge_attn", input, {{"topk", 0.0625}});
  EXPECT_EQ(visited_blocks(plan, 0, 5), (Blocks{3}));
  EXPECT_EQ(visited_blocks(plan, 0, 6), (Blocks{0}));
}

// Equal scores go to the lower index. (Keys that sum to zero and differ, or smoothing leaves
// zeros.)
TEST(SpargeAttn, uniform_attention_keeps_the_first_blocks) {
  AttentionInput input = blank_input({1024, 1, 1, 64});
  testing::set_query_dim(input, 0, 0, 1024, 0);
  for (std::int64_t x = 0; x < 1024; ++x) {
    testing::k_row(input, 0, x)[1] = x / 64 % 2 == 0 ? 1.0f : -1.0f;
  }
  const SparsePlan plan = plan_of("sparge_attn", input, {{"topk", 0.25}});
  EXPECT_EQ(visited_blocks(plan, 0, 7), testing::blocks_below(4));
  EXPECT_EQ(visited_blocks(plan, 0, 0), testing::blocks_below(2));
}

// Trap 26: with 128x64 tiles half a tile may be left without a key. With 64x128 none is.
TEST(SpargeAttn, wide_query_tile_may_leave_rows_without_keys) {
  AttentionInput input = blank_input({1024, 1, 1, 64});
  testing::set_query_dim(input, 0, 0, 1024, 0);
  testing::set_key_logit(input, 0, 64, 128, 0, 20.0f);
  const SparsePlan plan = plan_of("sparge_attn", input, {{"topk", 0.0}});
  EXPECT_EQ(visited_blocks(plan, 0, 0), (Blocks{1}));
  const testing::Executed result = testing::execute(input, plan);
  EXPECT_EQ(testing::rows_without_keys(result), 64);
  for (std::size_t i = 0; i < 64 * 64; ++i) ASSERT_EQ(result.out[i], 0.0f);
  const SparsePlan tall = plan_of("sparge_attn", input, {{"topk", 0.0}, {"tile", "64x128"}});
  EXPECT_EQ(testing::rows_without_keys(testing::execute(input, tall)), 0);
}

// Trap 22 and the PV skip: the tile decides the plan's shape and how many last steps are exempt.
TEST(SpargeAttn, tile_sets_shape_and_exempt_steps) {
  const AttentionInput input = testing::structured_input({1000, 1, 1, 64});
  const SparsePlan wide = plan_of("sparge_attn", input);
  EXPECT_EQ(wide.header.block_m, 128);
  EXPECT_EQ(wide.header.block_n, 64);
  EXPECT_EQ(wide.header.pv_skip_exempt, 2);
  EXPECT_EQ(wide.header.pv_skip_threshold, 50.0f);
  const SparsePlan tall = plan_of("sparge_attn", input, {{"tile", "64x128"}, {"pvthreshd", 20.0}});
  EXPECT_EQ(tall.header.block_m, 64);
  EXPECT_EQ(tall.header.block_n, 128);
  EXPECT_EQ(tall.header.pv_skip_exempt, 1);
  EXPECT_EQ(tall.header.pv_skip_threshold, 20.0f);
}

// Trap 24: tiles on the diagonal are masked per element.
TEST(SpargeAttn, diagonal_tiles_are_causal) {
  const AttentionInput input = testing::structured_input({1000, 1, 1, 64});
  for (const char* tile : {"128x64", "64x128"}) {
    const SparsePlan plan = plan_of("sparge_attn", input, {{"topk", 1.0}, {"tile", tile}});
    check_plan(input.problem, plan);
    const PlanPass& pass = plan.passes[0];
    for (std::size_t t = 0; t + 1 < pass.item_offsets.size(); ++t) {
      const auto last = static_cast<std::size_t>(pass.item_offsets[t + 1]) - 1;
      EXPECT_EQ(pass.items[last].mask, MaskClass::kCausal) << tile << " tile " << t;
    }
  }
}

// Trap 17: a partial last block is never similar, so its row and its column are dense.
TEST(SpargeAttn, partial_last_blocks_are_dense) {
  AttentionInput input = blank_input({1000, 1, 1, 64});
  testing::add_stripe(input, 0, 5, /*dim=*/0, 640.0f);
  const SparsePlan plan = plan_of("sparge_attn", input, {{"topk", 0.0}, {"tile", "64x128"}});
  EXPECT_EQ(visited_blocks(plan, 0, 13), (Blocks{0}));
  EXPECT_EQ(visited_blocks(plan, 0, 14), (Blocks{0, 7}));
  EXPECT_EQ(visited_blocks(plan, 0, 15), testing::blocks_below(8));
}

// Keys that share a large mean are alike only because of it: the gate looks at them without it.
TEST(SpargeAttn, similarity_gate_sees_smoothed_keys) {
  AttentionInput input = blank_input({1024, 1, 1, 64});
  testing::add_stripe(input, 0, 5, /*dim=*/0, 640.0f);
  const CounterRandom random(9, 0);
  for (std::int64_t x = 0; x < 1024; ++x) {
    float* key = testing::k_row(input, 0, x);
    key[1] = 100.0f;
    for (int i = 2; i < 64; ++i) {
      key[i] = static_cast<float>(random.normal(static_cast<std::uint64_t>(x * 64 + i)));
    }
  }
  const SparsePlan gated = plan_of("sparge_attn", input, {{"topk", 0.0}, {"simthreshd1", 0.6}});
  EXPECT_EQ(visited_blocks(gated, 0, 7), testing::blocks_below(16));
  const SparsePlan open = plan_of("sparge_attn", input, {{"topk", 0.0}});
  EXPECT_EQ(visited_blocks(open, 0, 7), (Blocks{0}));
}

TEST(SpargeAttn, plans_are_sound_at_ragged_lengths) {
  const nlohmann::ordered_json defaults = nlohmann::ordered_json::object();
  testing::expect_sound_plans("sparge_attn", defaults, /*every_row_has_a_key=*/false);
  testing::expect_sound_plans("sparge_attn", {{"topk", 0.05}, {"tile", "64x128"}});
  testing::expect_sound_plans("sparge_attn", {{"cdfthreshd", 0.7},
                                              {"tile", "64x128"},
                                              {"simthreshd1", 0.3},
                                              {"rounding", "fp32"},
                                              {"compensation", "blocks"}});
}

}  // namespace
}  // namespace s2o
