#include <gmock/gmock.h>
#include <gtest/gtest.h>

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

// ceil(0.7 n) of n equal blocks, the first ones; then the diagonal.
TEST(MeanPooling, uniform_attention_keeps_the_first_blocks) {
  const AttentionInput input = zero_input({1024, 4, 2, 16});
  const SparsePlan plan = plan_of("mean_pooling", input, {{"threshold", 0.7}});
  EXPECT_THAT(visited_blocks(input.problem, plan, 1, 0), ElementsAre(0));
  EXPECT_THAT(visited_blocks(input.problem, plan, 1, 1), ElementsAre(0, 1));
  EXPECT_THAT(visited_blocks(input.problem, plan, 1, 3), ElementsAre(0, 1, 2, 3));
  EXPECT_THAT(visited_blocks(input.problem, plan, 1, 5), ElementsAre(0, 1, 2, 3, 4, 5));
  EXPECT_THAT(visited_blocks(input.problem, plan, 1, 7), ElementsAre(0, 1, 2, 3, 4, 5, 7));
}

TEST(MeanPooling, vertical_stripe_is_found) {
  AttentionInput input = zero_input({1024, 4, 2, 16});
  set_q(input, 0, 1024, 3, 32.0f);
  set_k(input, 300, 304, 3, 32.0f);  // mean 1, logit 8
  const SparsePlan plan = plan_of("mean_pooling", input, Json::object());
  for (int tile = 3; tile < 8; ++tile) {
    EXPECT_THAT(visited_blocks(input.problem, plan, 3, tile), ElementsAre(0, 2, tile));
  }
}

TEST(MeanPooling, slash_is_found) {
  AttentionInput input = zero_input({1024, 4, 1, 16});
  for (int b = 0; b < 8; ++b) {
    set_k(input, b * kB, (b + 1) * kB, b, 8.0f);
    if (b >= 3) set_q(input, b * kB, (b + 1) * kB, b - 3, 8.0f);
  }
  const SparsePlan plan = plan_of("mean_pooling", input, Json::object());
  for (int tile = 4; tile < 8; ++tile) {
    EXPECT_THAT(visited_blocks(input.problem, plan, 2, tile), ElementsAre(0, tile - 3, tile));
  }
}

// A needle must outshout two means: (1024 / 128)^2 / 4 = 16.
TEST(MeanPooling, needle_is_found) {
  AttentionInput input = zero_input({1024, 2, 1, 16});
  testing::k_row(input, 0, 400)[5] = 1024.0f;
  testing::q_row(input, 1, 700)[5] = 1024.0f;
  const SparsePlan plan = plan_of("mean_pooling", input, Json::object());
  EXPECT_THAT(visited_blocks(input.problem, plan, 1, 5), ElementsAre(0, 3, 5));
  EXPECT_EQ(visited_blocks(input.problem, plan, 0, 5), block_range(0, 6));  // the other head
}

// Trap 13.3: the diagonal block competes in the softmax; a loud one leaves no mass to collect.
TEST(MeanPooling, diagonal_counts_in_the_mass) {
  AttentionInput input = zero_input({1024, 1, 1, 16});
  for (int b = 0; b < 8; ++b) {
    set_q(input, b * kB, (b + 1) * kB, b, 8.0f);
    set_k(input, b * kB, (b + 1) * kB, b, 8.0f);
  }
  const SparsePlan plan = plan_of("mean_pooling", input, Json::object());
  for (int tile = 1; tile < 8; ++tile) {
    EXPECT_THAT(visited_blocks(input.problem, plan, 0, tile), ElementsAre(0, tile));
  }
}

// Trap 13.17: the last block has 2 of 128 rows; divided by 128 its score is negligible, divided by
// 2 it would be the loudest.
TEST(MeanPooling, partial_last_block_is_pooled_with_zeros) {
  AttentionInput input = zero_input({514, 1, 1, 16});
  set_q(input, 512, 514, 0, 32.0f);
  set_k(input, 512, 514, 0, 32.0f);
  set_k(input, 256, 384, 0, 16.0f);  // qhat = 0.5: logit 2; the last block has 0.0625
  const SparsePlan plan = plan_of("mean_pooling", input, {{"threshold", 0.6}});
  EXPECT_THAT(visited_blocks(input.problem, plan, 0, 4), ElementsAre(0, 2, 4));
}

TEST(MeanPooling, threshold_one_is_everything_and_defaults_are_published) {
  const AttentionInput input = random_input({1000, 2, 1, 16}, 4);
  const SparsePlan plan = plan_of("mean_pooling", input, {{"threshold", 1.0}});
  for (int tile = 0; tile < 8; ++tile) {
    EXPECT_EQ(visited_blocks(input.problem, plan, 1, tile), block_range(0, tile + 1));
  }
  const ParamSet params(find_method("mean_pooling").info().params);
  EXPECT_EQ(params.get_real("threshold"), 0.9);
  EXPECT_EQ(params.get_int("block_size"), 128);
  EXPECT_EQ(params.get_choice("rounding"), "official");
}

// Row i of one head by definition, fp64.
testing::CrossIn row_by_definition(const AttentionInput& input, int head, int i, int block,
                                   double threshold) {
  const Problem& p = input.problem;
  std::vector<double> scores;
  for (int j = 0; j <= i; ++j) {
    scores.push_back(0.0);
    for (int c = 0; c < p.head_dim; ++c) {
      scores.back() += testing::padded_mean(input.q_head(head), p, i, block, c) *
                       testing::padded_mean(input.k_head(head / p.group_size()), p, j, block, c) /
                       std::sqrt(static_cast<double>(p.head_dim));
    }
  }
  testing::CrossIn row = testing::cross_in_by_definition(scores, threshold);
  row.blocks.insert(0);
  row.blocks.insert(i);
  return row;
}

TEST(MeanPooling, selection_equals_scalar_transcription_at_level_b) {
  std::int64_t kept_blocks = 0;
  std::int64_t causal_blocks = 0;
  int open_rows = 0;
  for (std::uint64_t seed = 0; seed < 30; ++seed) {
    const CounterRandom random(seed, 5);
    const double threshold = 0.2 + 0.75 * random.uniform(0);
    const int block = random.below(1, 2) == 0 ? 128 : 64;
    const AttentionInput input = random_input({1 + random.below(2, 1500), 4, 2, 16}, seed);
    const SparsePlan plan =
        plan_of("mean_pooling", input,
                {{"threshold", threshold}, {"block_size", block}, {"rounding", "fp32"}});
    for (int head = 0; head < input.problem.num_q_heads; ++head) {
      for (int i = 0; i < plan.header.num_q_tiles; ++i) {
        const testing::CrossIn expected = row_by_definition(input, head, i, block, threshold);
        const std::vector<int> found = visited_blocks(input.problem, plan, head, i, block);
        kept_blocks += static_cast<std::int64_t>(found.size());
        causal_blocks += i + 1;
        open_rows += expected.open ? 1 : 0;
        if (expected.open) continue;
        EXPECT_EQ(found, std::vector<int>(expected.blocks.begin(), expected.blocks.end()))
            << "seed " << seed << " head " << head << " row " << i;
      }
    }
  }
  EXPECT_LT(kept_blocks, causal_blocks * 85 / 100);  // the rule must have something to decide
  EXPECT_LT(open_rows, 5);
}

TEST(MeanPooling, agrees_with_dense_at_full_budget_on_ragged_shapes) {
  testing::expect_method_agrees_with_dense("mean_pooling");
}

}  // namespace
}  // namespace s2o
