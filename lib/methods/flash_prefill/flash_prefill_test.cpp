#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "lib/core/error.h"
#include "lib/testing/flash_prefill_inputs.h"

namespace s2o {
namespace {

using flash_prefill_testing::Json;
using flash_prefill_testing::kB;
using flash_prefill_testing::Rule;
using testing::block_range;
using ::testing::ElementsAre;
using testing::plan_of;
using testing::random_input;
using testing::set_k;
using testing::set_q;
using testing::visited_blocks;
using testing::zero_input;

// Trap 22.11: what the paper runs, not the class defaults of the release.
TEST(FlashPrefill, defaults_are_the_papers) {
  const ParamSet params(find_method("flash_prefill").info().params);
  EXPECT_EQ(params.get_real("alpha"), 0.1);
  EXPECT_EQ(params.get_int("sink_blocks"), 2);
  EXPECT_EQ(params.get_int("window_blocks"), 4);
  EXPECT_EQ(params.get_int("last_tiles"), 8);
  EXPECT_TRUE(params.get_bool("mean_correction"));
  EXPECT_EQ(params.get_choice("version"), "v2");
  const AttentionInput input = random_input({700, 8, 2, 16}, 1);
  const SparsePlan plan = plan_of("flash_prefill", input, Json::object());
  EXPECT_EQ(plan.header.pack, 4);
  EXPECT_EQ(plan.header.num_plan_heads, 2);
  EXPECT_EQ(plan.header.fold.kind, Compensation::kBlocks);
  EXPECT_TRUE(plan.header.fold.round_bf16);
}

// Trap 22.1: last_tiles counts packed tiles. Uneven keys, so that nothing but the tail is dense.
TEST(FlashPrefill, last_tiles_count_tiles_of_32_positions_at_four_heads_a_group) {
  AttentionInput input = zero_input({1024, 4, 1, 16});
  set_q(input, 0, 1024, 0, 8.0f);
  set_k(input, 0, 128, 0, 8.0f);  // everybody loves block 0
  Rule rule = {.alpha = 0.5, .sink = 0, .window = 1, .tail = 8};
  const SparsePlan v2 = plan_of("flash_prefill", input, rule.json());
  ASSERT_EQ(v2.header.num_q_tiles, 32);
  // 8 tiles = 256 positions: blocks 6 and 7.
  EXPECT_THAT(visited_blocks(input.problem, v2, 0, 23), ElementsAre(0, 5));
  EXPECT_EQ(visited_blocks(input.problem, v2, 0, 24), block_range(0, 7));
  EXPECT_EQ(visited_blocks(input.problem, v2, 0, 31), block_range(0, 8));
  rule.version = 1;
  rule.tail = 2;
  const SparsePlan v1 = plan_of("flash_prefill", input, rule.json());
  ASSERT_EQ(v1.header.num_q_tiles, 8);
  EXPECT_THAT(visited_blocks(input.problem, v1, 3, 5), ElementsAre(0, 5));
  EXPECT_EQ(visited_blocks(input.problem, v1, 3, 6), block_range(0, 7));
}

// Trap 22.2 and quirk (i): positions 0..63 of both heads make up the first tile, so one loud head
// decides for both, and only for its own positions.
TEST(FlashPrefillV2, loud_head_decides_for_its_group) {
  AttentionInput input = zero_input({512, 2, 1, 16});
  for (std::int64_t x = 128; x < 256; ++x) testing::k_row(input, 0, x)[0] = 4.0f;
  for (std::int64_t t = 384; t < 448; ++t) testing::q_row(input, 1, t)[0] = 16.0f;
  const SparsePlan plan =
      plan_of("flash_prefill", input, Rule{.alpha = 0.1, .sink = 0, .window = 1, .tail = 0}.json());
  ASSERT_EQ(plan.header.num_q_tiles, 8);
  EXPECT_THAT(visited_blocks(input.problem, plan, 0, 6), ElementsAre(1, 3));  // positions 384..447
  EXPECT_EQ(visited_blocks(input.problem, plan, 0, 7), block_range(0, 4));    // 448..511, uniform
}

// Quirk (ii): at four heads a group the diagonal block is a candidate in every fourth tile, and a
// loud one raises that tile's cut.
TEST(FlashPrefillV2, loud_diagonal_thins_every_fourth_tile) {
  AttentionInput input = zero_input({640, 4, 1, 16});
  set_q(input, 0, 640, 0, 8.0f);
  set_k(input, 384, 512, 0, 8.0f);
  const SparsePlan plan =
      plan_of("flash_prefill", input, Rule{.alpha = 0.1, .sink = 0, .window = 1, .tail = 0}.json());
  for (const int tile : {12, 13, 14}) {
    EXPECT_EQ(visited_blocks(input.problem, plan, 0, tile), block_range(0, 4)) << tile;
  }
  EXPECT_THAT(visited_blocks(input.problem, plan, 0, 15), ElementsAre(3));
}

// Uniform attention: every candidate has the same energy, so everything is kept.
TEST(FlashPrefill, uniform_attention_keeps_everything) {
  const AttentionInput input = zero_input({1000, 4, 2, 16});
  for (const int version : {1, 2}) {
    const SparsePlan plan =
        plan_of("flash_prefill", input,
                Rule{.version = version, .alpha = 0.9, .sink = 0, .window = 1, .tail = 0}.json());
    for (int tile = 0; tile < plan.header.num_q_tiles; ++tile) {
      // V1's diagonal block has one vote instead of 128, but the window holds it.
      const TileRows rows = tile_rows(input.problem, plan.header, tile);
      EXPECT_EQ(visited_blocks(input.problem, plan, 0, tile),
                block_range(0, static_cast<int>(rows.last_position / kB) + 1))
          << "version " << version << " tile " << tile;
    }
  }
}

// One vertical stripe: a few loud keys in block 2 that all queries read.
TEST(FlashPrefill, vertical_stripe_is_found) {
  AttentionInput input = zero_input({1024, 4, 2, 16});
  set_q(input, 0, 1024, 3, 32.0f);
  set_k(input, 300, 304, 3, 32.0f);  // mean key 1, logit 8
  for (const int version : {1, 2}) {
    const SparsePlan plan = plan_of(
        "flash_prefill", input, Rule{.version = version, .sink = 0, .window = 1, .tail = 0}.json());
    const int tiles_per_block = plan.header.num_q_tiles / 8;
    for (int tile = 3 * tiles_per_block; tile < plan.header.num_q_tiles; ++tile) {
      EXPECT_THAT(visited_blocks(input.problem, plan, 1, tile),
                  ElementsAre(2, tile / tiles_per_block))
          << "version " << version << " tile " << tile;
    }
  }
}

// One slash: query block i reads key block i - 3.
TEST(FlashPrefill, slash_is_found) {
  AttentionInput input = zero_input({1024, 4, 4, 16});
  for (int b = 0; b < 8; ++b) {
    set_k(input, b * kB, (b + 1) * kB, b, 8.0f);
    if (b >= 3) set_q(input, b * kB, (b + 1) * kB, b - 3, 8.0f);
  }
  for (const int version : {1, 2}) {
    const SparsePlan plan = plan_of(
        "flash_prefill", input, Rule{.version = version, .sink = 0, .window = 1, .tail = 0}.json());
    for (int tile = 3; tile < 8; ++tile) {
      EXPECT_THAT(visited_blocks(input.problem, plan, 2, tile), ElementsAre(tile - 3, tile))
          << "version " << version;
    }
  }
}

// A needle: one query reads one key; its tile keeps that block, all others see uniform scores.
TEST(FlashPrefill, needle_is_found) {
  AttentionInput input = zero_input({1024, 2, 1, 16});
  testing::k_row(input, 0, 200)[5] = 64.0f;
  testing::q_row(input, 1, 700)[5] = 128.0f;  // logit 128 * 0.5 / 4 = 16 against the mean key
  for (const int version : {1, 2}) {
    const SparsePlan plan = plan_of(
        "flash_prefill", input, Rule{.version = version, .sink = 0, .window = 1, .tail = 0}.json());
    const int head = version == 1 ? 1 : 0;
    const int tile = version == 1 ? 700 / 128 : 700 / 64;
    EXPECT_THAT(visited_blocks(input.problem, plan, head, tile), ElementsAre(1, 5));
    EXPECT_EQ(visited_blocks(input.problem, plan, head, tile + 1).size(),
              static_cast<std::size_t>(
                  tile_rows(input.problem, plan.header, tile + 1).last_position / kB + 1));
  }
}

TEST(FlashPrefill, compensation_takes_the_place_of_the_mean_correction) {
  const AttentionInput input = random_input({700, 4, 2, 16}, 3);
  Json params = Rule{}.json(true);
  params["compensation"] = "blocks";
  EXPECT_TRUE(plan_of("flash_prefill", input, params).header.fold.round_bf16);
  params["compensation"] = "centroid";
  EXPECT_THROW(plan_of("flash_prefill", input, params), ConfigError);
  params["mean_correction"] = false;
  EXPECT_EQ(plan_of("flash_prefill", input, params).header.fold.kind, Compensation::kCentroid);
  params["compensation"] = "none";
  EXPECT_EQ(plan_of("flash_prefill", input, params).header.fold.kind, Compensation::kNone);
}

TEST(FlashPrefill, agrees_with_dense_at_full_budget_on_ragged_shapes) {
  testing::expect_method_agrees_with_dense("flash_prefill");
}

}  // namespace
}  // namespace s2o
