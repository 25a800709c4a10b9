#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <numeric>
#include <set>

#include "lib/core/error.h"
#include "lib/methods/tests/selection_test_util.h"

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
  EXPECT_EQ(token_at(input, plan, 0, 200), 199);  // moved up by token 100 alone
  EXPECT_EQ(token_at(input, plan, 0, 201), 201);
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

// Trap 13.15: the sink is the block that holds token 0 after sorting; storage block 0 is not forced;
// the own segment is visited whole, the block after the diagonal included.
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

// Trap 13.17: query row 4 is a block of 2 rows; with zeros its score is 0.5 * 8 / 4 = 1 and the loved
// block holds e / (e + 3) = 0.48 < 0.6 of the mass; with its true count it would hold all.
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

// The definition scalar by scalar in fp64, at level B; the order is checked, then taken as it is.
TEST(PbsAttn, selection_equals_scalar_transcription) {
  std::int64_t kept_blocks = 0;
  std::int64_t allowed_blocks = 0;
  std::int64_t open_rows = 0;
  for (std::uint64_t seed = 0; seed < 16; ++seed) {
    const CounterRandom random(seed, 5);
    const double threshold = 0.2 + 0.75 * random.uniform(0);
    const int block = random.below(1, 2) == 0 ? 128 : 64;
    const std::int64_t segment = block * (1 + random.below(2, 3));
    const AttentionInput input =
        random_input({segment + 1 + random.below(3, 1200), 4, 2, 16}, seed, 0.7);
    const Problem& p = input.problem;
    const int d = p.head_dim;
    const SparsePlan plan = plan_of("pbs_attn", input,
                                    {{"threshold", threshold},
                                     {"block_size", block},
                                     {"segment_size", segment},
                                     {"rounding", "fp32"}});
    for (int head = 0; head < p.num_q_heads; ++head) {
      const float* keys = input.k_head(head / 2);
      const auto logit = [&](std::int64_t t, std::int64_t x) {
        double dot = 0.0;
        for (int c = 0; c < d; ++c) dot += static_cast<double>(input.q_head(head)[t * d + c]) * keys[x * d + c];
        return dot / 4.0;
      };
      const std::int64_t ranked = p.seqlen / segment * segment;
      std::vector<double> mass(static_cast<std::size_t>(ranked), 0.0);
      for (std::int64_t t = p.seqlen - block; t < p.seqlen; ++t) {
        double total = 0.0;
        for (std::int64_t x = 0; x < ranked; ++x) total += std::exp(logit(t, x));
        for (std::int64_t x = 0; x < ranked; ++x) {
          mass[static_cast<std::size_t>(x)] += std::exp(logit(t, x)) / total;
        }
      }
      for (std::int64_t slot = 0; slot < p.seqlen; ++slot) {
        const std::int32_t token = token_at(input, plan, head, slot);
        ASSERT_EQ(token / segment, slot / segment);
        if (slot >= ranked) {
          ASSERT_EQ(token, slot);
        } else if (slot % segment != 0) {
          const std::int32_t before = token_at(input, plan, head, slot - 1);
          ASSERT_GE(mass[static_cast<std::size_t>(before)],
                    mass[static_cast<std::size_t>(token)] * (1.0 - 1e-4));
        }
      }
      const auto mean_q = [&](int b, int c) {
        double sum = 0.0;
        for (std::int64_t t = b * block; t < std::min<std::int64_t>((b + 1) * block, p.seqlen); ++t) {
          sum += input.q_head(head)[t * d + c];
        }
        return sum / block;
      };
      std::vector<double> mean_k(static_cast<std::size_t>(plan.header.num_q_tiles * d), 0.0);
      int zero_block = -1;
      for (std::int64_t slot = 0; slot < p.seqlen; ++slot) {
        const std::int32_t token = token_at(input, plan, head, slot);
        if (token == 0) zero_block = static_cast<int>(slot / block);
        for (int c = 0; c < d; ++c) {
          mean_k[static_cast<std::size_t>(slot / block * d + c)] += keys[token * d + c] / static_cast<double>(block);
        }
      }
      const auto per_segment = static_cast<int>(segment / block);
      for (int i = 0; i < plan.header.num_q_tiles; ++i) {
        const int own = i / per_segment * per_segment;
        std::vector<double> score;
        double total = 0.0;
        for (int j = 0; j < own; ++j) {
          score.push_back(0.0);
          for (int c = 0; c < d; ++c) {
            score.back() += mean_q(i, c) * mean_k[static_cast<std::size_t>(j * d + c)] / 4.0;
          }
          total += std::exp(score.back());
        }
        std::set<int> expected;
        std::set<int> left;
        for (int j = 0; j < own; ++j) left.insert(j);
        double sum = 0.0;
        bool open = false;
        while (sum < threshold && !left.empty()) {
          const int best = *std::max_element(left.begin(), left.end(), [&](int a, int b) {
            return score[static_cast<std::size_t>(a)] < score[static_cast<std::size_t>(b)];
          });
          left.erase(best);
          expected.insert(best);
          sum += std::exp(score[static_cast<std::size_t>(best)]) / total;
          open = open || std::abs(sum - threshold) < 1e-5;
        }
        const auto from_threshold = static_cast<std::int64_t>(expected.size());
        if (zero_block < own) expected.insert(zero_block);
        for (int j = own; j < std::min(own + per_segment, plan.header.num_q_tiles); ++j) expected.insert(j);
        kept_blocks += from_threshold;
        allowed_blocks += own;
        open_rows += open ? 1 : 0;
        if (open) continue;
        EXPECT_EQ(visited_blocks(p, plan, head, i, block),
                  std::vector<int>(expected.begin(), expected.end()))
            << "seed " << seed << " head " << head << " row " << i;
      }
    }
  }
  EXPECT_LT(kept_blocks, allowed_blocks * 8 / 10);
  EXPECT_LT(open_rows, 5);
}

// Compensation: unvisited storage blocks of earlier segments enter as their means; by definition in
// fp64. Blocks of the own segment are never folded: they hold keys of the future.
TEST(PbsAttn, compensation_folds_storage_blocks_of_earlier_segments) {
  const AttentionInput input = random_input({1000, 2, 1, 16}, 21, 0.7);
  const Problem& p = input.problem;
  const int d = p.head_dim;
  const SparsePlan plan =
      plan_of("pbs_attn", input, {{"threshold", 0.3}, {"compensation", "blocks"}});
  ASSERT_EQ(plan.header.fold.kind, Compensation::kBlocks);
  std::vector<float> expected(input.q.size());
  int folds = 0;
  for (int head = 0; head < p.num_q_heads; ++head) {
    for (std::int64_t t = 0; t < p.seqlen; ++t) {
      const auto tile = static_cast<int>(t / kB);
      const int own = tile / 2 * 2;
      ASSERT_EQ(plan.passes[0].fold_end[static_cast<std::size_t>(plan.tile_index(head, tile))],
                own * kB);
      const std::vector<int> visited = visited_blocks(p, plan, head, tile);
      double sum = 0.0;
      std::vector<double> acc(static_cast<std::size_t>(d), 0.0);
      const auto add = [&](const std::vector<double>& k, const std::vector<double>& v, double n) {
        double dot = 0.0;
        for (int c = 0; c < d; ++c) dot += input.q_head(head)[t * d + c] * k[static_cast<std::size_t>(c)];
        const double weight = n * std::exp(dot / 4.0);
        sum += weight;
        for (int c = 0; c < d; ++c) acc[static_cast<std::size_t>(c)] += weight * v[static_cast<std::size_t>(c)];
      };
      for (int b = 0; b < 8; ++b) {
        const bool is_visited = std::find(visited.begin(), visited.end(), b) != visited.end();
        std::vector<double> mean_k(static_cast<std::size_t>(d), 0.0), mean_v = mean_k;
        for (std::int64_t slot = b * kB; slot < std::min<std::int64_t>((b + 1) * kB, p.seqlen); ++slot) {
          const std::int32_t x = token_at(input, plan, head, slot);
          std::vector<double> k(input.k_head(0) + x * d, input.k_head(0) + (x + 1) * d);
          std::vector<double> v(input.v_head(0) + x * d, input.v_head(0) + (x + 1) * d);
          if (is_visited && x <= t) add(k, v, 1.0);
          for (std::size_t c = 0; c < k.size(); ++c) {
            mean_k[c] += k[c] / kB;
            mean_v[c] += v[c] / kB;
          }
        }
        if (!is_visited && b < own) {
          add(mean_k, mean_v, kB);
          ++folds;
        }
      }
      for (int c = 0; c < d; ++c) {
        expected[static_cast<std::size_t>(p.row_offset(head, t) + c)] =
            static_cast<float>(acc[static_cast<std::size_t>(c)] / sum);
      }
    }
  }
  EXPECT_GT(folds, 1000);
  EXPECT_LE(testing::relative_l2(testing::execute(input, plan).out, expected), 1e-5);
}

TEST(PbsAttn, agrees_with_dense_at_full_budget_on_ragged_shapes) {
  testing::expect_method_agrees_with_dense("pbs_attn");
}

}  // namespace
}  // namespace s2o
