// FlashPrefill's mean correction: what is folded, and what the output then is.
#include <gtest/gtest.h>

#include <set>

#include "kernels/common/bf16.h"
#include "lib/testing/flash_prefill_inputs.h"

namespace s2o {
namespace {

using flash_prefill_testing::Json;
using flash_prefill_testing::kB;
using flash_prefill_testing::random_case;
using flash_prefill_testing::RandomCase;
using flash_prefill_testing::Rule;
using testing::plan_of;
using testing::random_input;
using testing::visited_blocks;

// Section 17: every visible key of every row exactly once, exactly or through its mean; a mean
// holds no key of the future.
TEST(FlashPrefillV2, every_visible_key_is_covered_exactly_once) {
  for (std::uint64_t seed = 0; seed < 50; ++seed) {
    const RandomCase random = random_case(seed + 500, 2);
    const AttentionInput input = random_input(random.shape, seed, 1.5);
    const SparsePlan plan = plan_of("flash_prefill", input, random.rule.json(true));
    ASSERT_EQ(plan.header.fold.kind, Compensation::kBlocks);
    ASSERT_EQ(plan.header.fold.fold_block, kB);
    for (int head = 0; head < plan.header.num_plan_heads; ++head) {
      for (int tile = 0; tile < plan.header.num_q_tiles; ++tile) {
        const TileRows rows = tile_rows(input.problem, plan.header, tile);
        const auto fold_end = static_cast<std::int64_t>(
            plan.passes[0].fold_end[static_cast<std::size_t>(plan.tile_index(head, tile))]);
        // Trap 22.8: the bound comes from the first position.
        ASSERT_EQ(fold_end, rows.first_position / kB * kB);
        const std::vector<int> visits = testing::visited_slots(input.problem, plan, head, tile);
        for (std::int64_t x = 0; x <= rows.last_position; ++x) {
          const int folded = x < fold_end && visits[static_cast<std::size_t>(x)] == 0 ? 1 : 0;
          ASSERT_EQ(visits[static_cast<std::size_t>(x)] + folded, 1)
              << "seed " << seed << " head " << head << " tile " << tile << " key " << x;
        }
        const bool dense_tail = tile >= plan.header.num_q_tiles - random.rule.tail;
        if (dense_tail) {
          ASSERT_EQ(visits[0], 1) << "a dense tile folds nothing";
        }
      }
    }
  }
}

// Mean correction in fp64, from the selected blocks: one extra column per folded block with
// logit q.kbar * scale + ln 128 and value vbar, means rounded to bf16.
std::vector<float> output_by_definition(const AttentionInput& input, const SparsePlan& plan,
                                        bool rounded_means) {
  const Problem& p = input.problem;
  const int d = p.head_dim;
  const auto num_complete = static_cast<int>(p.seqlen / kB);
  const auto mean_of = [&](const float* x, int j, int i) {
    double sum = 0.0;
    for (std::int64_t t = j * kB; t < (j + 1) * kB; ++t) sum += x[t * d + i];
    return rounded_means ? static_cast<double>(round_bf16(static_cast<float>(sum / kB))) : sum / kB;
  };
  std::vector<float> out(input.q.size());
  for (int head = 0; head < p.num_q_heads; ++head) {
    const int kv_head = head / p.group_size();
    const float* k = input.k_head(kv_head);
    const float* v = input.v_head(kv_head);
    std::vector<double> k_mean, v_mean;
    for (int j = 0; j < num_complete; ++j) {
      for (int i = 0; i < d; ++i) {
        k_mean.push_back(mean_of(k, j, i));
        v_mean.push_back(mean_of(v, j, i));
      }
    }
    for (std::int64_t t = 0; t < p.seqlen; ++t) {
      const int pack = plan.header.pack;
      const int plan_head = head / pack;
      const auto tile = static_cast<int>((t * pack + head % pack) / kB);
      const std::int64_t t0 = kB * static_cast<std::int64_t>(tile) / pack;
      const std::vector<int> blocks = visited_blocks(p, plan, plan_head, tile);
      const std::set<int> selected(blocks.begin(), blocks.end());
      const float* q = input.q_head(head) + t * d;
      double sum = 0.0;
      std::vector<double> acc(static_cast<std::size_t>(d), 0.0);
      const auto add = [&](const auto* key, const auto* value, double count) {
        double dot = 0.0;
        for (int i = 0; i < d; ++i) dot += static_cast<double>(q[i]) * key[i];
        const double weight = count * std::exp(dot / std::sqrt(static_cast<double>(d)));
        sum += weight;
        for (int i = 0; i < d; ++i) acc[static_cast<std::size_t>(i)] += weight * value[i];
      };
      for (int j = 0; static_cast<std::int64_t>(j) * kB <= t; ++j) {
        if (selected.count(j) != 0) {
          for (std::int64_t x = j * kB; x < (j + 1) * kB && x <= t; ++x)
            add(k + x * d, v + x * d, 1.0);
        } else if ((j + 1) * kB <= t0) {
          add(k_mean.data() + j * d, v_mean.data() + j * d, kB);
        }
      }
      for (int i = 0; i < d; ++i) {
        out[static_cast<std::size_t>(p.row_offset(head, t) + i)] =
            static_cast<float>(acc[static_cast<std::size_t>(i)] / sum);
      }
    }
  }
  return out;
}

TEST(FlashPrefillV2, mean_correction_equals_its_definition_in_fp64) {
  for (const int heads_per_group : {1, 3, 4}) {
    const AttentionInput input =
        random_input({900, 2 * heads_per_group, 2, 16}, 5 + heads_per_group, 1.0);
    for (const char* rounding : {"official", "fp32"}) {
      Json params = Rule{.alpha = 0.3, .sink = 1, .window = 1, .tail = 2}.json(true);
      params["rounding"] = rounding;
      const SparsePlan plan = plan_of("flash_prefill", input, params);
      const bool official = std::string(rounding) == "official";
      EXPECT_EQ(plan.header.fold.round_bf16, official);
      const testing::Executed result = testing::execute(input, plan);
      std::int64_t folded = 0;
      for (const TileStats& stats : result.stats) folded += stats.fold_columns;
      EXPECT_GT(folded, 10);  // else the comparison shows nothing
      EXPECT_LE(testing::relative_l2(result.out, output_by_definition(input, plan, official)), 1e-5)
          << heads_per_group << " heads a group, " << rounding;
    }
  }
}

}  // namespace
}  // namespace s2o
