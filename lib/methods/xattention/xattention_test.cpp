#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>

#include "kernels/common/bf16.h"
#include "lib/core/error.h"
#include "lib/methods/xattention/xattention.h"
#include "lib/testing/selections.h"

namespace s2o {
namespace {

using testing::blank_input;
using ::testing::ElementsAre;
using testing::plan_of;
using testing::visited_blocks;
using Blocks = std::set<std::int64_t>;

Blocks row_of(const std::vector<float>& mass, std::int64_t q_block, double threshold,
              bool first_chunk) {
  std::vector<std::uint8_t> selected(mass.size(), 0);
  xattention_select_row(mass, q_block, threshold, first_chunk, selected.data());
  Blocks blocks;
  for (std::size_t j = 0; j < selected.size(); ++j) {
    if (selected[j] != 0) blocks.insert(static_cast<std::int64_t>(j));
  }
  return blocks;
}

const std::vector<float> kMass = {2.0f, 1.0f, 5.0f, 3.0f, 0.5f, 0.25f, 4.0f, 0.0f};

// Trap 2: the block that crosses the threshold is kept. Forced blocks count first.
TEST(XAttentionRow, later_chunk_credits_sink_and_diagonal) {
  EXPECT_EQ(row_of(kMass, 6, 0.8, false), (Blocks{0, 2, 3, 6}));
  EXPECT_EQ(row_of(kMass, 6, 0.3, false), (Blocks{0, 6}));
  EXPECT_EQ(row_of(kMass, 6, 0.39, false), (Blocks{0, 2, 6}));
}

// Trap 4: in the first chunk the sink is not credited and one block too many is kept.
TEST(XAttentionRow, first_chunk_keeps_one_block_more) {
  EXPECT_EQ(row_of(kMass, 6, 0.8, true), (Blocks{0, 1, 2, 3, 6}));
  EXPECT_EQ(row_of(kMass, 6, 0.01, true), (Blocks{0, 2, 6}));  // the largest other one always
  EXPECT_EQ(row_of(kMass, 6, 0.0, true), (Blocks{0, 6}));      // unless nothing is needed
}

TEST(XAttentionRow, first_row_and_full_threshold) {
  EXPECT_EQ(row_of({1.0f, 0.0f}, 0, 0.9, true), (Blocks{0}));
  EXPECT_EQ(row_of({1.0f, 0.0f}, 0, 0.9, false), (Blocks{0}));
  EXPECT_EQ(row_of(kMass, 4, 1.0, true), testing::blocks_below(5));
  EXPECT_EQ(row_of({1.0f, 0.0f, 0.0f, 1.0f}, 3, 1.0, false), testing::blocks_below(4));
}

TEST(XAttentionRow, ties_go_to_the_lower_index) {
  EXPECT_EQ(row_of({0.0f, 1.0f, 1.0f, 1.0f, 1.0f, 1.0f}, 5, 0.5, false), (Blocks{0, 1, 2, 5}));
}

// Trap 4: the chunk belongs to the definition; up to 16K all rows are first-chunk rows.
TEST(XAttentionChunk, follows_the_sequence_length) {
  EXPECT_EQ(xattention_chunk(1), 2048);
  EXPECT_EQ(xattention_chunk(2049), 4096);
  EXPECT_EQ(xattention_chunk(16384), 16384);
  EXPECT_EQ(xattention_chunk(16385), 8192);
  EXPECT_EQ(xattention_chunk(32768), 8192);
  EXPECT_EQ(xattention_chunk(65536), 4096);
  EXPECT_EQ(xattention_chunk(131072), 2048);
  EXPECT_EQ(xattention_chunk(1 << 20), 2048);
}

// W straight from its definition, fp64, one pair at a time.
std::vector<double> naive_block_mass(const AttentionInput& input, int stride, bool round_sums) {
  const Problem& problem = input.problem;
  const std::int64_t rows = num_blocks(problem.seqlen, stride);
  const std::int64_t blocks = num_blocks(problem.seqlen, 128);
  std::vector<double> mass(static_cast<std::size_t>(blocks * blocks), 0.0);
  for (std::int64_t a = 0; a < rows; ++a) {
    std::vector<double> weight;
    double total = 0.0;
    for (std::int64_t b = 0; b <= a; ++b) {
      double sum = 0.0;
      for (int u = 0; u < stride; ++u) {
        const std::int64_t t = a * stride + stride - 1 - u;
        const std::int64_t x = b * stride + u;
        if (t >= problem.seqlen || x >= problem.seqlen) continue;
        for (int i = 0; i < problem.head_dim; ++i) {
          sum += static_cast<double>(input.q_head(0)[t * problem.head_dim + i]) *
                 static_cast<double>(input.k_head(0)[x * problem.head_dim + i]);
        }
      }
      if (round_sums) sum = round_bf16(static_cast<float>(sum));
      weight.push_back(std::exp(sum / (std::sqrt(static_cast<double>(problem.head_dim)) * stride)));
      total += weight.back();
    }
    for (std::int64_t b = 0; b <= a; ++b) {
      mass[static_cast<std::size_t>(a * stride / 128 * blocks + b * stride / 128)] +=
          weight[static_cast<std::size_t>(b)] / total;
    }
  }
  return mass;
}

std::vector<float> block_mass(const AttentionInput& input, int stride, const Rounder& round) {
  const std::int64_t blocks = num_blocks(input.problem.seqlen, 128);
  std::vector<float> keys = input.k;
  keys.resize(static_cast<std::size_t>(num_blocks(input.problem.seqlen, stride) * stride *
                                       input.problem.head_dim),
              0.0f);
  std::vector<float> mass(static_cast<std::size_t>(blocks * blocks), -1.0f);
  // In two strips, as a long sequence would be.
  const std::int64_t cut = blocks / 2;
  const std::span<float> all(mass);
  xattention_block_mass(input, 0, keys.data(), 0, cut, 128, stride, round,
                        all.first(static_cast<std::size_t>(cut * blocks)));
  xattention_block_mass(input, 0, keys.data(), cut, blocks, 128, stride, round,
                        all.subspan(static_cast<std::size_t>(cut * blocks)));
  return mass;
}

// Small integers, so that the antidiagonal sums are exact in any order.
AttentionInput integer_input(std::int64_t seqlen) {
  AttentionInput input = blank_input({seqlen, 1, 1, 16}, StorageDType::kBF16);
  const CounterRandom random(5, 0);
  for (std::size_t i = 0; i < input.q.size(); ++i) {
    input.q[i] = static_cast<float>(random.below(2 * i, 13)) - 6.0f;
    input.k[i] = static_cast<float>(random.below(2 * i + 1, 13)) - 6.0f;
  }
  return input;
}

// Trap 8: the tile on the diagonal counts whole, so its estimate looks ahead inside the stride.
TEST(XAttentionMass, equals_the_definition_in_fp32) {
  for (const int stride : {4, 8, 16}) {
    for (const std::int64_t seqlen : {517, 1021}) {
      const AttentionInput input = integer_input(seqlen);
      const std::vector<double> expected = naive_block_mass(input, stride, false);
      const std::vector<float> mass = block_mass(input, stride, Rounder());
      for (std::size_t i = 0; i < mass.size(); ++i) {
        ASSERT_NEAR(mass[i], expected[i], 1e-5 * (1.0 + expected[i]))
            << "stride " << stride << ", " << seqlen << " tokens, entry " << i;
      }
    }
  }
}

// Trap 7: sums are rounded before the scale, block masses once more.
TEST(XAttentionMass, rounds_unscaled_sums_and_block_masses) {
  const AttentionInput input = integer_input(1021);
  const std::vector<double> rounded = naive_block_mass(input, 8, true);
  const std::vector<double> exact = naive_block_mass(input, 8, false);
  const std::vector<float> mass = block_mass(input, 8, Rounder(StorageDType::kBF16));
  double effect = 0.0;
  for (std::size_t i = 0; i < mass.size(); ++i) {
    ASSERT_EQ(mass[i], round_bf16(mass[i])) << "entry " << i;
    // Half a unit in the last place of bf16 is at most 2^-8 of the value; and fp32 arithmetic.
    ASSERT_NEAR(mass[i], rounded[i], rounded[i] * (0x1p-8 + 1e-5)) << "entry " << i;
    effect = std::max(effect, std::abs(rounded[i] - exact[i]) / (exact[i] + 1e-30));
  }
  EXPECT_GT(effect, 0x1p-7);  // so the test can tell the two apart
}

// Trap 7: the scaled logit stays fp32. Reduced row 16 sees 123.885 in block 0 and 123.320 in its
// own; in bf16 they would be 124.0 and 123.5.
TEST(XAttentionMass, does_not_round_scaled_logits) {
  AttentionInput input = blank_input({136, 1, 1, 50}, StorageDType::kBF16);
  testing::q_row(input, 0, 135)[0] = 1.0f;
  testing::k_row(input, 0, 0)[0] = 7008.0f;
  testing::k_row(input, 0, 128)[0] = 6976.0f;
  const float difference = 32.0f * input.problem.softmax_scale / 8.0f;
  const std::vector<float> mass = block_mass(input, 8, Rounder(StorageDType::kBF16));
  EXPECT_EQ(mass[2], round_bf16(1.0f / (1.0f + std::exp(-difference))));
  EXPECT_NE(mass[2], round_bf16(1.0f / (1.0f + std::exp(-0.5f))));
}

TEST(XAttention, one_stripe_becomes_one_column) {
  AttentionInput input = blank_input({1000, 2, 1, 64});
  testing::add_stripe(input, 0, 405, /*dim=*/0, 200.0f);
  testing::add_stripe(input, 1, 700, /*dim=*/1, 200.0f);
  const SparsePlan plan = plan_of("xattention", input);
  check_plan(input.problem, plan);
  EXPECT_EQ(visited_blocks(plan, 0, 7), (Blocks{0, 3, 7}));
  EXPECT_EQ(visited_blocks(plan, 0, 4), (Blocks{0, 3, 4}));
  EXPECT_EQ(visited_blocks(plan, 1, 7), (Blocks{0, 5, 7}));
}

// An odd distance meets one antidiagonal pair per stride tile. 333 = 41 * 8 + 7 - 2: reduced row a
// finds column a - 41, nine of sixteen in block i - 3, seven in block i - 2.
TEST(XAttention, one_slash_becomes_two_block_diagonals) {
  AttentionInput input = blank_input({1000, 1, 1, 1000});
  testing::set_slash(input, 333, 200.0f);
  const SparsePlan plan = plan_of("xattention", input);
  check_plan(input.problem, plan);
  EXPECT_EQ(visited_blocks(plan, 0, 6), (Blocks{0, 3, 4, 6}));
  EXPECT_EQ(visited_blocks(plan, 0, 5), (Blocks{0, 2, 3, 5}));
}

// Query 999 is last in its stride group, so it is paired with keys that are first in theirs: a
// needle at 296 = 37 * 8 is seen, one at 300 is not.
TEST(XAttention, needle_is_seen_on_the_antidiagonal_only) {
  for (const auto& [needle, expected] :
       {std::pair<std::int64_t, Blocks>{296, {0, 2, 7}}, {300, {0, 7}}}) {
    AttentionInput input = blank_input({1000, 1, 1, 64});
    testing::q_row(input, 0, 999)[0] = 1.0f;
    testing::set_key_logit(input, 0, needle, needle + 1, 0, 200.0f);
    const SparsePlan plan = plan_of("xattention", input, {{"threshold", 0.01}});
    EXPECT_EQ(visited_blocks(plan, 0, 7), expected) << "needle at " << needle;
  }
}

// Uniform attention: all earlier blocks weigh the same, so the first ones are kept, as many as the
// rule of the first chunk says.
TEST(XAttention, uniform_attention_keeps_the_first_blocks) {
  const AttentionInput input = blank_input({1024, 1, 1, 64});
  constexpr double kThreshold = 0.5;
  const SparsePlan plan = plan_of("xattention", input, {{"threshold", kThreshold}});
  for (int i = 1; i < 8; ++i) {
    double other = 0.0;
    double own = 0.0;
    for (int a = 16 * i; a < 16 * i + 16; ++a) {
      other += 16.0 / (a + 1);
      own += (a - 16 * i + 1.0) / (a + 1);
    }
    int count = 1;
    while (count < i && own + (count - 1) * other < kThreshold * 16.0) ++count;
    Blocks expected = testing::blocks_below(count);
    expected.insert(i);
    EXPECT_EQ(visited_blocks(plan, 0, i), expected) << "row " << i;
  }
}

// 32K tokens make chunks of 64 blocks. Two stripes, the weaker one in block 2.
// Trap 4: row 40 keeps it as the block too many, row 200 does not.
// Trap 5: row 200 still sees the mass of the chunks before its own.
TEST(XAttention, later_chunks_see_all_mass_and_keep_no_extra_block) {
  AttentionInput input = blank_input({32768, 1, 1, 8});
  testing::add_stripe(input, 0, 5 * 128 + 7, /*dim=*/0, 200.0f);
  testing::set_key_logit(input, 0, 2 * 128 + 7, 2 * 128 + 8, /*dim=*/0, 100.0f);
  const SparsePlan plan = plan_of("xattention", input);
  check_plan(input.problem, plan);
  EXPECT_EQ(visited_blocks(plan, 0, 40), (Blocks{0, 2, 5, 40}));
  EXPECT_EQ(visited_blocks(plan, 0, 63), (Blocks{0, 2, 5, 63}));
  EXPECT_EQ(visited_blocks(plan, 0, 64), (Blocks{0, 5, 64}));
  EXPECT_EQ(visited_blocks(plan, 0, 200), (Blocks{0, 5, 200}));
}

// Trap 6: the sink is key column 0, never query row 0 on all blocks.
TEST(XAttention, sink_is_a_key_column) {
  const AttentionInput input = testing::structured_input({1500, 2, 1, 64});
  const SparsePlan plan = plan_of("xattention", input, {{"threshold", 0.1}});
  for (int i = 0; i < 12; ++i) EXPECT_TRUE(visited_blocks(plan, 1, i).contains(0)) << "row " << i;
  EXPECT_EQ(visited_blocks(plan, 1, 0), (Blocks{0}));
}

TEST(XAttention, compensation_restores_uniform_attention) {
  const AttentionInput input = blank_input({1000, 2, 1, 64});
  const DenseReference dense = testing::naive_dense(input);
  for (const char* kind : {"centroid", "blocks", "blocks_variance"}) {
    const SparsePlan plan =
        plan_of("xattention", input, {{"threshold", 0.1}, {"compensation", kind}});
    check_plan(input.problem, plan);
    EXPECT_LT(visited_blocks(plan, 0, 7).size(), 8u);
    EXPECT_LE(testing::relative_l2(testing::execute(input, plan).out, dense.out), 1e-5) << kind;
  }
}

TEST(XAttention, rejects_strides_it_is_not_defined_for) {
  const AttentionInput input = blank_input({300, 1, 1, 64});
  EXPECT_THROW(plan_of("xattention", input, {{"stride", 6}}), ConfigError);
  EXPECT_THROW(plan_of("xattention", input, {{"block_size", 96}}), ConfigError);
}

TEST(XAttention, plans_are_sound_at_ragged_lengths) {
  testing::expect_sound_plans("xattention", nlohmann::ordered_json::object());
  testing::expect_sound_plans("xattention", {{"threshold", 0.0}, {"stride", 16}});
  testing::expect_sound_plans(
      "xattention",
      {{"threshold", 0.5}, {"block_size", 64}, {"rounding", "fp32"}, {"compensation", "centroid"}});
}

}  // namespace
}  // namespace s2o
