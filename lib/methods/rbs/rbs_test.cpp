#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <set>

#include "kernels/common/bf16.h"
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

// Nothing forced but the diagonal block.
Json bare(double alpha_base = 0.22, bool rescue = true) {
  return {{"alpha_base", alpha_base},
          {"rescue", rescue},
          {"sink_blocks", 0},
          {"window_blocks", 1},
          {"last_tiles", 0}};
}

struct Rule {
  double alpha_base = 0.22;
  double alpha_rescue = 0.18;
  int sink = 2;
  int window = 4;
  int tail = 2;
};

double quantile(std::vector<double> values, double fraction) {
  std::sort(values.begin(), values.end());
  const double place = fraction * (static_cast<double>(values.size()) - 1.0);
  const auto low = static_cast<std::size_t>(std::floor(place));
  const auto high = static_cast<std::size_t>(std::ceil(place));
  return values[low] * (1.0 - (place - std::floor(place))) +
         values[high] * (place - std::floor(place));
}

// The rule of one head, transcribed scalar by scalar.
class ScalarRbs {
 public:
  ScalarRbs(const AttentionInput& input, int q_head, const Rule& rule)
      : input_(input), q_head_(q_head), rule_(rule), kv_head_(q_head / input.problem.group_size()) {
    const int d = input.problem.head_dim;
    std::vector<double> radii;
    for (int b = 0; (b + 1) * kB <= input.problem.seqlen; ++b) {
      std::vector<double> mean(static_cast<std::size_t>(d), 0.0);
      for (int x = 0; x < kB; ++x) {
        for (int i = 0; i < d; ++i) mean[static_cast<std::size_t>(i)] += key(b * kB + x)[i] / 128.0;
      }
      double radius = 0.0;
      for (int x = 0; x < kB; ++x) {
        double distance = 0.0;
        for (int i = 0; i < d; ++i) {
          distance += std::pow(key(b * kB + x)[i] - mean[static_cast<std::size_t>(i)], 2);
        }
        radius = std::max(radius, std::sqrt(distance));
      }
      radii.push_back(radius);
      for (const double x : mean) centroids_.push_back(round_bf16(static_cast<float>(x)));
    }
    if (radii.empty()) return;
    const double low = quantile(radii, 0.5);
    const double high = quantile(radii, 0.9);
    for (const double radius : radii) {
      const double beta = high > low ? std::clamp((radius - low) / (high - low), 0.0, 1.0)
                                     : (radius > low ? 1.0 : 0.0);
      lifts_.push_back(radius * beta);
    }
  }

  std::set<int> select(int tile, std::set<int>& open) const {
    std::set<int> kept;
    keep_loud(tile, false, rule_.alpha_base, kept, open);
    keep_loud(tile, true, rule_.alpha_rescue, kept, open);
    const auto num_tiles = static_cast<int>((input_.problem.seqlen + kB - 1) / kB);
    for (int b = 0; b <= tile; ++b) {
      if (b < rule_.sink || tile - b < rule_.window || tile >= num_tiles - rule_.tail)
        kept.insert(b);
    }
    return kept;
  }

 private:
  const float* key(int x) const { return input_.k_head(kv_head_) + x * input_.problem.head_dim; }

  void keep_loud(int tile, bool lifted, double alpha, std::set<int>& kept,
                 std::set<int>& open) const {
    const int d = input_.problem.head_dim;
    std::vector<std::vector<double>> logits(static_cast<std::size_t>(tile));
    double largest = -1e300;
    for (int b = 0; b < tile; ++b) {
      for (int t = tile * kB; t < std::min<std::int64_t>((tile + 1) * kB, input_.problem.seqlen);
           ++t) {
        const float* q = input_.q_head(q_head_) + t * d;
        double dot = 0.0;
        double norm = 0.0;
        for (int i = 0; i < d; ++i) {
          dot += static_cast<double>(q[i]) * centroids_[static_cast<std::size_t>(b * d + i)];
          norm += static_cast<double>(q[i]) * q[i];
        }
        if (lifted) dot += std::sqrt(norm) * lifts_[static_cast<std::size_t>(b)];
        logits[static_cast<std::size_t>(b)].push_back(dot / std::sqrt(static_cast<double>(d)));
        largest = std::max(largest, logits[static_cast<std::size_t>(b)].back());
      }
    }
    std::vector<double> energy;
    for (const std::vector<double>& block : logits) {
      energy.push_back(0.0);
      for (const double x : block) energy.back() += std::exp(x - largest);
    }
    if (energy.empty()) return;
    const double loudest = *std::max_element(energy.begin(), energy.end());
    for (int b = 0; b < tile; ++b) {
      const double s = energy[static_cast<std::size_t>(b)];
      if (s >= alpha * loudest) kept.insert(b);
      if (s < loudest && std::abs(s - alpha * loudest) < 1e-4 * alpha * loudest) open.insert(b);
    }
  }

  const AttentionInput& input_;
  int q_head_;
  Rule rule_;
  int kv_head_;
  std::vector<float> centroids_;  // [blocks, head_dim]
  std::vector<double> lifts_;     // [blocks]
};

// Trap 22.14 among others: |q| enters per token, inside the sum over the tile.
TEST(Rbs, selection_equals_scalar_transcription) {
  std::int64_t blocks_open = 0;
  std::int64_t blocks_kept = 0;
  std::int64_t blocks_causal = 0;
  for (std::uint64_t seed = 0; seed < 40; ++seed) {
    const CounterRandom random(seed, 77);
    const int kv_heads = 1 + static_cast<int>(random.below(0, 2));
    const int g = 1 + static_cast<int>(random.below(1, 4));
    const Rule rule = {.alpha_base = 0.05 + 0.5 * random.uniform(2),
                       .alpha_rescue = 0.05 + 0.5 * random.uniform(3),
                       .sink = static_cast<int>(random.below(4, 3)),
                       .window = 1 + static_cast<int>(random.below(5, 3)),
                       .tail = static_cast<int>(random.below(6, 3))};
    const AttentionInput input =
        random_input({1 + random.below(7, 1800), g * kv_heads, kv_heads, 16}, seed, 0.7);
    const SparsePlan plan = plan_of("rbs", input,
                                    {{"alpha_base", rule.alpha_base},
                                     {"alpha_rescue", rule.alpha_rescue},
                                     {"sink_blocks", rule.sink},
                                     {"window_blocks", rule.window},
                                     {"last_tiles", rule.tail}});
    for (int head = 0; head < input.problem.num_q_heads; ++head) {
      const ScalarRbs scalar(input, head, rule);
      for (int tile = 0; tile < plan.header.num_q_tiles; ++tile) {
        std::set<int> open;
        const std::set<int> expected = scalar.select(tile, open);
        const std::vector<int> found = visited_blocks(input.problem, plan, head, tile);
        std::set<int> differ;
        std::set_symmetric_difference(expected.begin(), expected.end(), found.begin(), found.end(),
                                      std::inserter(differ, differ.end()));
        for (const int b : open) differ.erase(b);
        EXPECT_TRUE(differ.empty()) << "seed " << seed << " head " << head << " tile " << tile
                                    << ": block " << *differ.begin() << " differs";
        blocks_open += static_cast<std::int64_t>(open.size());
        blocks_kept += static_cast<std::int64_t>(found.size());
        blocks_causal += tile + 1;
      }
    }
  }
  EXPECT_LT(blocks_open, blocks_causal / 100);
  EXPECT_LT(blocks_kept, blocks_causal * 85 / 100);  // the rule must have something to decide
}

// Block 1 has a loud mean key; block 3 has mean zero but two far keys of opposite sign.
AttentionInput loud_and_wide() {
  AttentionInput input = zero_input({1024, 2, 1, 16});
  set_q(input, 0, 1024, 0, 8.0f);
  set_k(input, 128, 256, 0, 4.0f);   // base logit 8 * 4 / 4 = 8
  set_k(input, 384, 385, 1, 20.0f);  // radius 20, lifted logit 8 * 20 / 4 = 40
  set_k(input, 385, 386, 1, -20.0f);
  return input;
}

// Trap 22.14: each branch has its own maximum. With one shared maximum block 1 would drop out next
// to the lifted energy of block 3.
TEST(Rbs, branches_have_separate_maxima) {
  const AttentionInput input = loud_and_wide();
  const SparsePlan plan = plan_of("rbs", input, bare());
  EXPECT_THAT(visited_blocks(input.problem, plan, 0, 6), ElementsAre(1, 3, 6));
  const SparsePlan centroid_only = plan_of("rbs", input, bare(0.22, false));
  EXPECT_THAT(visited_blocks(input.problem, centroid_only, 0, 6), ElementsAre(1, 6));
}

// Trap 22.15: a wide block near the end of the prompt moves the quantiles, so an early row loses
// the rescue of block 3. (By construction: ten complete blocks, block 3 is at the top with one wide
// block and below the median with seven wider ones.)
TEST(Rbs, early_rows_depend_on_later_keys) {
  AttentionInput input = zero_input({1280, 1, 1, 16});
  set_q(input, 0, 1280, 0, 8.0f);
  set_k(input, 128, 256, 0, 4.0f);
  set_k(input, 384, 385, 1, 20.0f);
  set_k(input, 385, 386, 1, -20.0f);
  EXPECT_THAT(visited_blocks(input.problem, plan_of("rbs", input, bare()), 0, 4),
              ElementsAre(1, 3, 4));
  for (int b = 5; b < 10; ++b) {
    set_k(input, b * kB, b * kB + 1, 2, 40.0f + static_cast<float>(b));
    set_k(input, b * kB + 1, b * kB + 2, 2, -40.0f - static_cast<float>(b));
  }
  // Median radius now lies between 20 and 45: block 3 has weight 0.
  EXPECT_THAT(visited_blocks(input.problem, plan_of("rbs", input, bare()), 0, 4),
              ElementsAre(1, 4));
}

TEST(Rbs, rescue_threshold_follows_the_base_threshold_unless_set) {
  const AttentionInput input = random_input({1500, 4, 2, 16}, 9, 0.7);
  const auto items = [&](Json params) {
    std::vector<std::int64_t> begins;
    const SparsePlan plan = plan_of("rbs", input, params);
    for (const PlanItem& item : plan.passes[0].items) {
      begins.push_back(item.begin * 100000 + item.count);
    }
    return begins;
  };
  Json params = bare(0.11);
  const auto tied = items(params);
  params["alpha_rescue"] = 0.09;
  EXPECT_EQ(items(params), tied);
  params["alpha_rescue"] = 0.5;
  EXPECT_NE(items(params), tied);
}

TEST(Rbs, defaults_are_those_of_our_reading) {
  const ParamSet params(find_method("rbs").info().params);
  EXPECT_EQ(params.get_real("alpha_base"), 0.22);
  EXPECT_FALSE(params.is_set("alpha_rescue"));
  EXPECT_TRUE(params.get_bool("rescue"));
  EXPECT_EQ(params.get_int("sink_blocks"), 2);
  EXPECT_EQ(params.get_int("window_blocks"), 4);
  EXPECT_EQ(params.get_int("last_tiles"), 2);
  EXPECT_EQ(find_method("rbs").info().title, "RBS (our reading)");
}

TEST(Rbs, last_tiles_are_dense_and_window_and_sink_forced) {
  AttentionInput input = zero_input({1024, 1, 1, 16});
  set_q(input, 0, 1024, 0, 8.0f);
  set_k(input, 256, 384, 0, 8.0f);
  const SparsePlan plan =
      plan_of("rbs", input, {{"sink_blocks", 1}, {"window_blocks", 2}, {"last_tiles", 2}});
  EXPECT_THAT(visited_blocks(input.problem, plan, 0, 5), ElementsAre(0, 2, 4, 5));
  EXPECT_EQ(visited_blocks(input.problem, plan, 0, 6), block_range(0, 7));
  EXPECT_EQ(visited_blocks(input.problem, plan, 0, 7), block_range(0, 8));
}

TEST(Rbs, uniform_attention_keeps_everything) {
  const AttentionInput input = zero_input({1000, 4, 2, 16});
  const SparsePlan plan = plan_of("rbs", input, bare(0.9));
  for (int tile = 0; tile < 8; ++tile) {
    EXPECT_EQ(visited_blocks(input.problem, plan, 3, tile), block_range(0, tile + 1));
  }
}

TEST(Rbs, vertical_stripe_is_found) {
  AttentionInput input = zero_input({1024, 4, 2, 16});
  set_q(input, 0, 1024, 3, 32.0f);
  set_k(input, 256, 384, 3, 2.0f);
  const SparsePlan plan = plan_of("rbs", input, bare());
  for (int tile = 3; tile < 8; ++tile) {
    EXPECT_THAT(visited_blocks(input.problem, plan, 1, tile), ElementsAre(2, tile));
  }
}

TEST(Rbs, slash_is_found) {
  AttentionInput input = zero_input({1024, 4, 2, 16});
  for (int b = 0; b < 8; ++b) {
    set_k(input, b * kB, (b + 1) * kB, b, 8.0f);
    if (b >= 3) set_q(input, b * kB, (b + 1) * kB, b - 3, 8.0f);
  }
  const SparsePlan plan = plan_of("rbs", input, bare());
  for (int tile = 3; tile < 8; ++tile) {
    EXPECT_THAT(visited_blocks(input.problem, plan, 2, tile), ElementsAre(tile - 3, tile));
  }
}

// One key of block 1, which its mean hardly shows: 16 / 128 = 0.125, logit 16 * 0.125 / 4 = 0.5.
// The radius shows it: lifted by 16 * 16 / 4 = 64.
TEST(Rbs, needle_that_the_centroid_misses_is_rescued) {
  AttentionInput input = zero_input({1024, 2, 1, 16});
  set_k(input, 200, 201, 5, 16.0f);
  set_k(input, 384, 512, 6, 2.0f);
  testing::q_row(input, 1, 700)[5] = 16.0f;
  set_q(input, 640, 768, 6, 16.0f);  // the tile's loudest centroid is block 3: logit 8
  EXPECT_THAT(visited_blocks(input.problem, plan_of("rbs", input, bare(0.22, false)), 1, 5),
              ElementsAre(3, 5));
  EXPECT_THAT(visited_blocks(input.problem, plan_of("rbs", input, bare()), 1, 5),
              ElementsAre(1, 3, 5));
}

TEST(Rbs, agrees_with_dense_at_full_budget_on_ragged_shapes) {
  testing::expect_method_agrees_with_dense("rbs");
}

}  // namespace
}  // namespace s2o
