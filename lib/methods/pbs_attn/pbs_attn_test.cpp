#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "lib/core/error.h"
#include "lib/testing/block_selections.h"

namespace s2o {
namespace {

using ::testing::ElementsAre;
using Json = nlohmann::ordered_json;
using testing::block_range;
using testing::plan_of;
using testing::random_input;
using testing::set_k;
using testing::set_q;
using testing::visited_blocks;
using testing::zero_input;

constexpr int kB = 128;

// Slot `slot` of head `head`: the original token that is stored there.
std::int32_t token_at(const AttentionInput& input, const SparsePlan& plan, int head,
                      std::int64_t slot) {
  return plan.passes[0].key_order.at(static_cast<std::size_t>(head * input.problem.seqlen + slot));
}

// Trap 13.14: the ranking softmax has no causal mask. Query 484 loves key 511, its future.
TEST(PbsAttn, ranking_has_no_causal_mask) {
  AttentionInput input = zero_input({612, 1, 1, 16});
  testing::q_row(input, 0, 484)[0] = 16.0f;
  testing::k_row(input, 0, 511)[0] = 4.0f;
  const SparsePlan plan = plan_of("pbs_attn", input, Json::object());
  EXPECT_EQ(token_at(input, plan, 0, 256), 511);
  EXPECT_EQ(token_at(input, plan, 0, 257), 256);
  EXPECT_EQ(token_at(input, plan, 0, 511), 510);
}

// Trap 13.14: a trailing partial segment keeps its order and takes no mass. Query A loves the
// trailing key 600 most, key 70 second; query B prefers key 90 a little. With key 600 in the
// softmax A would have no mass left for key 70.
TEST(PbsAttn, ranking_leaves_out_the_trailing_partial_segment) {
  AttentionInput input = zero_input({612, 1, 1, 16});
  testing::q_row(input, 0, 601)[0] = 8.0f;
  testing::q_row(input, 0, 602)[1] = 8.0f;
  testing::k_row(input, 0, 600)[0] = 32.0f;  // logit 64
  testing::k_row(input, 0, 70)[0] = 3.0f;    // logit 6
  testing::k_row(input, 0, 90)[1] = 2.0f;    // logit 4
  const SparsePlan plan = plan_of("pbs_attn", input, Json::object());
  EXPECT_EQ(token_at(input, plan, 0, 0), 70);
  EXPECT_EQ(token_at(input, plan, 0, 1), 90);
  for (std::int64_t slot = 512; slot < 612; ++slot) EXPECT_EQ(token_at(input, plan, 0, slot), slot);
}

// Trap 13.1: the last 128 POSITIONS rank (472..599 here), not the last aligned block (512..599).
TEST(PbsAttn, ranking_uses_the_last_positions) {
  AttentionInput input = zero_input({600, 1, 1, 16});
  testing::q_row(input, 0, 480)[0] = 16.0f;
  testing::k_row(input, 0, 100)[0] = 4.0f;
  testing::q_row(input, 0, 471)[1] = 16.0f;  // one too early
  testing::k_row(input, 0, 200)[1] = 8.0f;
  const SparsePlan plan = plan_of("pbs_attn", input, Json::object());
  EXPECT_EQ(token_at(input, plan, 0, 0), 100);
  EXPECT_EQ(token_at(input, plan, 0, 1), 0);
  EXPECT_EQ(token_at(input, plan, 0, 100), 99);  // token 100 alone has moved
  EXPECT_EQ(token_at(input, plan, 0, 200), 200);
}

// Trap 13.14: the permutation is per query head, also where two heads share their keys.
TEST(PbsAttn, each_query_head_has_its_own_order) {
  AttentionInput input = zero_input({512, 2, 1, 16});
  testing::q_row(input, 0, 500)[0] = 16.0f;
  testing::q_row(input, 1, 500)[1] = 16.0f;
  testing::k_row(input, 0, 30)[0] = 4.0f;
  testing::k_row(input, 0, 40)[1] = 4.0f;
  const SparsePlan plan = plan_of("pbs_attn", input, Json::object());
  EXPECT_EQ(plan.header.pack, 1);
  EXPECT_EQ(token_at(input, plan, 0, 0), 30);
  EXPECT_EQ(token_at(input, plan, 1, 0), 40);
}

// Four segments. The ranking queries (the last block) love tokens 64..255, so token 0 moves to
// storage block 1. Rows of segment 2 love segment 1.
AttentionInput moved_token_zero() {
  AttentionInput input = zero_input({1024, 1, 1, 16});
  set_k(input, 64, 256, 0, 4.0f);
  set_k(input, 256, 512, 1, 4.0f);
  set_q(input, 512, 768, 1, 16.0f);
  set_q(input, 896, 1024, 0, 16.0f);
  return input;
}

// Trap 13.15: the sink is the block that holds token 0 after sorting; storage block 0 is not
// forced; the own segment is visited whole, the block after the diagonal included.
TEST(PbsAttn, sink_follows_token_zero_and_own_segment_is_whole) {
  const AttentionInput input = moved_token_zero();
  const SparsePlan plan = plan_of("pbs_attn", input, {{"threshold", 0.6}});
  EXPECT_EQ(token_at(input, plan, 0, 0), 64);
  EXPECT_EQ(token_at(input, plan, 0, 192), 0);
  EXPECT_THAT(visited_blocks(input.problem, plan, 0, 4), ElementsAre(1, 2, 3, 4, 5));
  EXPECT_THAT(visited_blocks(input.problem, plan, 0, 5), ElementsAre(1, 2, 3, 4, 5));
}

// Earlier segments need no mask; in the own one the mask compares original positions.
TEST(PbsAttn, mask_classes_and_output_follow_original_positions) {
  const AttentionInput input = random_input({900, 4, 2, 16}, 2, 0.5);
  const SparsePlan plan = plan_of("pbs_attn", input, {{"threshold", 1.0}});
  const PlanPass& pass = plan.passes[0];
  for (int tile = 0; tile < plan.header.num_q_tiles; ++tile) {
    const auto index = static_cast<std::size_t>(plan.tile_index(1, tile));
    const PlanItem& last = pass.items[static_cast<std::size_t>(pass.item_offsets[index + 1] - 1)];
    EXPECT_EQ(last.begin, tile / 2 * 256);
    EXPECT_EQ(last.count, std::min<std::int64_t>(256, 900 - last.begin));
    EXPECT_EQ(last.mask, MaskClass::kCausal);
    for (std::int64_t i = pass.item_offsets[index]; i + 1 < pass.item_offsets[index + 1]; ++i) {
      EXPECT_EQ(pass.items[static_cast<std::size_t>(i)].mask, MaskClass::kNone);
    }
  }
  const DenseReference reference = testing::naive_dense(input);
  EXPECT_LE(testing::relative_l2(testing::execute(input, plan).out, reference.out), 1e-5);
}

// Trap 13.3: the mass base is the earlier segments; a loud own block takes nothing from them.
TEST(PbsAttn, own_segment_takes_no_mass) {
  AttentionInput input = zero_input({1024, 1, 1, 16});
  for (int b = 0; b < 8; ++b) {
    set_q(input, b * kB, (b + 1) * kB, b, 16.0f);
    set_k(input, b * kB, (b + 1) * kB, b, 16.0f);
  }
  const SparsePlan plan = plan_of("pbs_attn", input, {{"threshold", 0.7}});
  // Row 6: six equal earlier blocks, ceil(0.7 * 6) = 5 of them.
  EXPECT_THAT(visited_blocks(input.problem, plan, 0, 6), ElementsAre(0, 1, 2, 3, 4, 6, 7));
}

// Trap 13.17: query row 4 is a block of 2 rows; with zeros its score is 0.5 * 8 / 4 = 1 and the
// loved block holds e / (e + 3) = 0.48 < 0.6 of the mass; with its true count it would hold all.
TEST(PbsAttn, partial_last_block_is_pooled_with_zeros) {
  AttentionInput input = zero_input({514, 1, 1, 16});
  set_q(input, 512, 514, 0, 32.0f);
  set_k(input, 256, 384, 0, 8.0f);
  const SparsePlan plan = plan_of("pbs_attn", input, {{"threshold", 0.6}});
  EXPECT_THAT(visited_blocks(input.problem, plan, 0, 4), ElementsAre(0, 2, 4));
  const SparsePlan more = plan_of("pbs_attn", input, {{"threshold", 0.7}});
  EXPECT_THAT(visited_blocks(input.problem, more, 0, 4), ElementsAre(0, 1, 2, 4));
}

// Trap 13.16.
TEST(PbsAttn, threshold_one_selects_all_allowed_blocks) {
  const AttentionInput input = random_input({1000, 2, 2, 16}, 8, 3.0);
  const SparsePlan plan = plan_of("pbs_attn", input, {{"threshold", 1.0}});
  for (int tile = 0; tile < 8; ++tile) {
    EXPECT_EQ(visited_blocks(input.problem, plan, 1, tile), block_range(0, (tile / 2 + 1) * 2));
  }
}

TEST(PbsAttn, short_sequences_are_dense) {
  for (const std::int64_t seqlen : {1, 200, 256}) {
    const AttentionInput input = random_input({seqlen, 2, 1, 16}, 8);
    const SparsePlan plan = plan_of("pbs_attn", input, Json::object());
    EXPECT_TRUE(plan.passes[0].key_order.empty());
    const testing::Executed result = testing::execute(input, plan);
    EXPECT_DOUBLE_EQ(count_work(input.problem, plan, result.stats).total.compute_density(), 1.0);
  }
}

TEST(PbsAttn, defaults_are_published_and_segment_must_be_a_multiple) {
  const ParamSet params(find_method("pbs_attn").info().params);
  EXPECT_EQ(params.get_real("threshold"), 0.9);
  EXPECT_EQ(params.get_int("segment_size"), 256);
  EXPECT_EQ(params.get_int("block_size"), 128);
  const AttentionInput input = random_input({600, 2, 1, 16}, 8);
  EXPECT_THROW(plan_of("pbs_attn", input, {{"segment_size", 192}}), ConfigError);
  EXPECT_NO_THROW(plan_of("pbs_attn", input, {{"segment_size", 192}, {"block_size", 64}}));
}

// Seven equal earlier... ceil(0.7 n) of n equal earlier blocks, the first ones; own segment whole.
TEST(PbsAttn, uniform_attention_keeps_the_first_blocks) {
  const AttentionInput input = zero_input({1280, 4, 2, 16});
  const SparsePlan plan = plan_of("pbs_attn", input, {{"threshold", 0.7}});
  EXPECT_THAT(visited_blocks(input.problem, plan, 3, 0), ElementsAre(0, 1));
  EXPECT_THAT(visited_blocks(input.problem, plan, 3, 3), ElementsAre(0, 1, 2, 3));
  EXPECT_THAT(visited_blocks(input.problem, plan, 3, 4), ElementsAre(0, 1, 2, 4, 5));
  EXPECT_THAT(visited_blocks(input.problem, plan, 3, 9), ElementsAre(0, 1, 2, 3, 4, 5, 8, 9));
}

// One vertical stripe per segment half: scattered loud keys of segment 1 gather in its first block.
TEST(PbsAttn, vertical_stripe_is_gathered_into_one_block) {
  AttentionInput input = zero_input({1024, 4, 2, 16});
  set_q(input, 0, 1024, 3, 16.0f);
  for (const std::int64_t x : {300, 333, 404, 490}) set_k(input, x, x + 1, 3, 64.0f);
  const SparsePlan plan = plan_of("pbs_attn", input, Json::object());
  EXPECT_EQ(token_at(input, plan, 2, 256), 300);
  EXPECT_EQ(token_at(input, plan, 2, 259), 490);
  EXPECT_EQ(token_at(input, plan, 2, 260), 256);
  // Mean key of storage block 2: 4 * 64 / 128 = 2, logit 8.
  EXPECT_THAT(visited_blocks(input.problem, plan, 2, 4), ElementsAre(0, 2, 4, 5));
  EXPECT_THAT(visited_blocks(input.problem, plan, 2, 7), ElementsAre(0, 2, 6, 7));
}

// One slash, four blocks back. The ranking queries are row 7: they love block 3, which is sorted to
// the front of segment 1, so blocks 2 and 3 change places in storage.
TEST(PbsAttn, slash_is_found_in_storage_order) {
  AttentionInput input = zero_input({1024, 4, 1, 16});
  for (int b = 0; b < 8; ++b) {
    set_k(input, b * kB, (b + 1) * kB, b, 8.0f);
    if (b >= 4) set_q(input, b * kB, (b + 1) * kB, b - 4, 16.0f);
  }
  const SparsePlan plan = plan_of("pbs_attn", input, Json::object());
  EXPECT_EQ(token_at(input, plan, 1, 256), 384);
  EXPECT_THAT(visited_blocks(input.problem, plan, 1, 4), ElementsAre(0, 4, 5));
  EXPECT_THAT(visited_blocks(input.problem, plan, 1, 5), ElementsAre(0, 1, 4, 5));
  EXPECT_THAT(visited_blocks(input.problem, plan, 1, 6), ElementsAre(0, 3, 6, 7));
  EXPECT_THAT(visited_blocks(input.problem, plan, 1, 7), ElementsAre(0, 2, 6, 7));
}

TEST(PbsAttn, needle_is_found) {
  AttentionInput input = zero_input({1024, 2, 1, 16});
  testing::k_row(input, 0, 400)[5] = 1024.0f;
  testing::q_row(input, 1, 700)[5] = 1024.0f;
  const SparsePlan plan = plan_of("pbs_attn", input, Json::object());
  EXPECT_THAT(visited_blocks(input.problem, plan, 1, 5), ElementsAre(0, 3, 4, 5));
  EXPECT_EQ(visited_blocks(input.problem, plan, 0, 5), block_range(0, 6));
}

TEST(PbsAttn, agrees_with_dense_at_full_budget_on_ragged_shapes) {
  testing::expect_method_agrees_with_dense("pbs_attn");
}

}  // namespace
}  // namespace s2o
