// PBS-Attn against its definition, scalar by scalar in fp64: order, selection, compensation.
#include <gtest/gtest.h>

#include <cmath>
#include <set>

#include "lib/testing/block_selections.h"

namespace s2o {
namespace {

using testing::plan_of;
using testing::random_input;
using testing::visited_blocks;

struct Setting {
  int block = 128;
  std::int64_t segment = 256;
  double threshold = 0.9;
};

// One query head. The order is checked against the definition, then taken as it is, so that ties do
// not matter.
class ScalarPbs {
 public:
  ScalarPbs(const AttentionInput& input, const SparsePlan& plan, int head, const Setting& setting)
      : input_(input),
        setting_(setting),
        q_(input.q_head(head)),
        k_(input.k_head(head / input.problem.group_size())),
        order_(plan.passes[0].key_order.data() + head * input.problem.seqlen) {}

  // Step 1: descending mass of the last `block` queries inside each complete segment.
  void check_order() const {
    const Problem& p = input_.problem;
    const std::int64_t ranked = p.seqlen / setting_.segment * setting_.segment;
    std::vector<double> mass(static_cast<std::size_t>(ranked), 0.0);
    for (std::int64_t t = p.seqlen - setting_.block; t < p.seqlen; ++t) {
      double total = 0.0;
      for (std::int64_t x = 0; x < ranked; ++x) total += std::exp(logit(t, x));
      for (std::int64_t x = 0; x < ranked; ++x) {
        mass[static_cast<std::size_t>(x)] += std::exp(logit(t, x)) / total;
      }
    }
    for (std::int64_t slot = 0; slot < p.seqlen; ++slot) {
      ASSERT_EQ(order_[slot] / setting_.segment, slot / setting_.segment);
      if (slot >= ranked) {
        ASSERT_EQ(order_[slot], slot);
      } else if (slot % setting_.segment != 0) {
        ASSERT_GE(mass[static_cast<std::size_t>(order_[slot - 1])],
                  mass[static_cast<std::size_t>(order_[slot])] * (1.0 - 1e-4));
      }
    }
  }

  // Steps 2 and 3 for query block i. `by_threshold` counts blocks without the forced ones.
  testing::CrossIn row(int i, std::int64_t& by_threshold) const {
    const Problem& p = input_.problem;
    const auto per_segment = static_cast<int>(setting_.segment / setting_.block);
    const int own = i / per_segment * per_segment;
    std::vector<double> scores;
    for (int j = 0; j < own; ++j) {
      scores.push_back(0.0);
      for (int c = 0; c < p.head_dim; ++c) {
        scores.back() += testing::padded_mean(q_, p, i, setting_.block, c) * mean_key(j, c) /
                         std::sqrt(static_cast<double>(p.head_dim));
      }
    }
    testing::CrossIn result = testing::cross_in_by_definition(scores, setting_.threshold);
    by_threshold += static_cast<std::int64_t>(result.blocks.size());
    std::int64_t zero = 0;
    while (order_[zero] != 0) ++zero;
    if (zero / setting_.block < own) result.blocks.insert(static_cast<int>(zero / setting_.block));
    for (std::int64_t x = own * setting_.block;
         x < std::min((own * setting_.block) + setting_.segment, p.seqlen); x += setting_.block) {
      result.blocks.insert(static_cast<int>(x / setting_.block));
    }
    return result;
  }

 private:
  double logit(std::int64_t t, std::int64_t x) const {
    const int d = input_.problem.head_dim;
    double dot = 0.0;
    for (int c = 0; c < d; ++c) dot += static_cast<double>(q_[t * d + c]) * k_[x * d + c];
    return dot / std::sqrt(static_cast<double>(d));
  }
  double mean_key(int storage_block, int c) const {
    double sum = 0.0;
    for (int slot = storage_block * setting_.block; slot < (storage_block + 1) * setting_.block;
         ++slot) {
      sum += k_[static_cast<std::int64_t>(order_[slot]) * input_.problem.head_dim + c];
    }
    return sum / setting_.block;
  }

  const AttentionInput& input_;
  Setting setting_;
  const float* q_;
  const float* k_;
  const std::int32_t* order_;
};

TEST(PbsAttn, order_and_selection_equal_scalar_transcription_at_level_b) {
  std::int64_t kept_blocks = 0;
  std::int64_t allowed_blocks = 0;
  int open_rows = 0;
  for (std::uint64_t seed = 0; seed < 16; ++seed) {
    const CounterRandom random(seed, 5);
    Setting setting;
    setting.threshold = 0.2 + 0.75 * random.uniform(0);
    setting.block = random.below(1, 2) == 0 ? 128 : 64;
    setting.segment = setting.block * (1 + random.below(2, 3));
    const AttentionInput input =
        random_input({setting.segment + 1 + random.below(3, 1200), 4, 2, 16}, seed, 0.7);
    const SparsePlan plan = plan_of("pbs_attn", input,
                                    {{"threshold", setting.threshold},
                                     {"block_size", setting.block},
                                     {"segment_size", setting.segment},
                                     {"rounding", "fp32"}});
    for (int head = 0; head < input.problem.num_q_heads; ++head) {
      const ScalarPbs scalar(input, plan, head, setting);
      ASSERT_NO_FATAL_FAILURE(scalar.check_order()) << "seed " << seed << " head " << head;
      for (int i = 0; i < plan.header.num_q_tiles; ++i) {
        const testing::CrossIn expected = scalar.row(i, kept_blocks);
        allowed_blocks += i * setting.block / setting.segment * setting.segment / setting.block;
        open_rows += expected.open ? 1 : 0;
        if (expected.open) continue;
        EXPECT_EQ(visited_blocks(input.problem, plan, head, i, setting.block),
                  std::vector<int>(expected.blocks.begin(), expected.blocks.end()))
            << "seed " << seed << " head " << head << " row " << i;
      }
    }
  }
  EXPECT_LT(kept_blocks, allowed_blocks * 8 / 10);  // the rule must have something to decide
  EXPECT_LT(open_rows, 5);
}

// Row t of a head in fp64: visited storage blocks exactly, unvisited ones of earlier segments as
// one column each.
class ScalarFold {
 public:
  ScalarFold(const AttentionInput& input, const SparsePlan& plan, int head)
      : problem_(input.problem),
        q_(input.q_head(head)),
        k_(input.k_head(head / input.problem.group_size())),
        v_(input.v_head(head / input.problem.group_size())),
        order_(plan.passes[0].key_order.data() + head * input.problem.seqlen) {}

  std::vector<double> row(std::int64_t t, const std::set<int>& visited, int own_block, int& folds) {
    sum_ = 0.0;
    acc_.assign(static_cast<std::size_t>(problem_.head_dim), 0.0);
    for (int b = 0; b * 128 < problem_.seqlen; ++b) {
      const std::int64_t end = std::min<std::int64_t>((b + 1) * 128, problem_.seqlen);
      if (visited.count(b) != 0) {
        for (std::int64_t slot = b * 128; slot < end; ++slot) {
          if (order_[slot] <= t) add(t, row_of(k_, slot), row_of(v_, slot), 1.0);
        }
      } else if (b < own_block) {
        add(t, mean_of(k_, b), mean_of(v_, b), 128.0);
        ++folds;
      }
    }
    for (double& x : acc_) x /= sum_;
    return acc_;
  }

 private:
  std::vector<double> row_of(const float* x, std::int64_t slot) const {
    const float* first = x + static_cast<std::int64_t>(order_[slot]) * problem_.head_dim;
    return {first, first + problem_.head_dim};
  }
  std::vector<double> mean_of(const float* x, int b) const {
    std::vector<double> mean(static_cast<std::size_t>(problem_.head_dim), 0.0);
    for (int slot = b * 128; slot < (b + 1) * 128; ++slot) {
      const std::vector<double> values = row_of(x, slot);
      for (std::size_t c = 0; c < mean.size(); ++c) mean[c] += values[c] / 128.0;
    }
    return mean;
  }
  void add(std::int64_t t, const std::vector<double>& key, const std::vector<double>& value,
           double count) {
    double dot = 0.0;
    for (std::size_t c = 0; c < key.size(); ++c) {
      dot += q_[t * problem_.head_dim + static_cast<std::int64_t>(c)] * key[c];
    }
    const double weight = count * std::exp(dot / std::sqrt(static_cast<double>(problem_.head_dim)));
    sum_ += weight;
    for (std::size_t c = 0; c < acc_.size(); ++c) acc_[c] += weight * value[c];
  }

  const Problem& problem_;
  const float* q_;
  const float* k_;
  const float* v_;
  const std::int32_t* order_;
  double sum_ = 0.0;
  std::vector<double> acc_;
};

// Blocks of the own segment are never folded: they hold keys of the future.
TEST(PbsAttn, compensation_folds_storage_blocks_of_earlier_segments) {
  const AttentionInput input = random_input({1000, 2, 1, 16}, 21, 0.7);
  const Problem& p = input.problem;
  const SparsePlan plan =
      plan_of("pbs_attn", input, {{"threshold", 0.3}, {"compensation", "blocks"}});
  ASSERT_EQ(plan.header.fold.kind, Compensation::kBlocks);
  std::vector<float> expected;
  int folds = 0;
  for (int head = 0; head < p.num_q_heads; ++head) {
    ScalarFold scalar(input, plan, head);
    for (std::int64_t t = 0; t < p.seqlen; ++t) {
      const auto tile = static_cast<int>(t / 128);
      const int own_block = tile / 2 * 2;
      ASSERT_EQ(plan.passes[0].fold_end[static_cast<std::size_t>(plan.tile_index(head, tile))],
                own_block * 128);
      const std::vector<int> blocks = visited_blocks(p, plan, head, tile);
      for (const double x : scalar.row(t, {blocks.begin(), blocks.end()}, own_block, folds)) {
        expected.push_back(static_cast<float>(x));
      }
    }
  }
  EXPECT_GT(folds, 1000);
  EXPECT_LE(testing::relative_l2(testing::execute(input, plan).out, expected), 1e-5);
}

}  // namespace
}  // namespace s2o
