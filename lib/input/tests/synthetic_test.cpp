#include "lib/input/synthetic.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <numeric>

#include "lib/testing/inputs.h"

namespace s2o {
namespace {

// Share of the causal keys that hold 95 % of the mass, mean over the last 64 queries and all heads.
double share_of_keys_for_95_percent(const AttentionInput& input) {
  const Problem& problem = input.problem;
  double total = 0.0;
  int rows = 0;
  for (int head = 0; head < problem.num_q_heads; ++head) {
    for (std::int64_t t = problem.seqlen - 64; t < problem.seqlen; ++t, ++rows) {
      const float* q = input.q_head(head) + t * problem.head_dim;
      std::vector<double> mass;
      for (std::int64_t x = 0; x <= t; ++x) {
        const float* k = input.k_head(head / problem.group_size()) + x * problem.head_dim;
        double dot = 0.0;
        for (int i = 0; i < problem.head_dim; ++i) dot += static_cast<double>(q[i] * k[i]);
        mass.push_back(std::exp(dot * static_cast<double>(problem.softmax_scale)));
      }
      const double all = std::accumulate(mass.begin(), mass.end(), 0.0);
      std::sort(mass.begin(), mass.end(), std::greater<>());
      double sum = 0.0;
      std::size_t needed = 0;
      while (needed < mass.size() && sum < 0.95 * all) sum += mass[needed++];
      total += static_cast<double>(needed) / static_cast<double>(mass.size());
    }
  }
  return total / rows;
}

class SyntheticMass : public ::testing::TestWithParam<std::tuple<const char*, double, double>> {};

// Pins the documented distribution of mass at 2,048 tokens, default strength and noise.
TEST_P(SyntheticMass, lies_in_documented_range) {
  const auto [pattern, low, high] = GetParam();
  const double share =
      share_of_keys_for_95_percent(testing::structured_input({2048, 4, 2, 128}, pattern));
  RecordProperty("share", std::to_string(share));
  EXPECT_GE(share, low) << pattern << " " << share;
  EXPECT_LE(share, high) << pattern << " " << share;
}

INSTANTIATE_TEST_SUITE_P(
    patterns, SyntheticMass,
    ::testing::Values(std::tuple("uniform", 0.945, 0.955), std::tuple("sinks", 0.18, 0.28),
                      std::tuple("stripes", 0.13, 0.21), std::tuple("slashes", 0.010, 0.018),
                      std::tuple("needles", 0.10, 0.16), std::tuple("heavy_tail", 0.07, 0.12),
                      std::tuple("mixed", 0.006, 0.012)));

TEST(Synthetic, same_seed_gives_identical_values_and_other_seeds_differ) {
  ParamSet params(synthetic_param_specs());
  params.set(synthetic_param_specs(), "seqlen", 300, "test");
  const AttentionInput a = make_synthetic(params, 1);
  const AttentionInput b = make_synthetic(params, 1);
  const AttentionInput c = make_synthetic(params, 2);
  EXPECT_EQ(a.q, b.q);
  EXPECT_EQ(a.k, b.k);
  EXPECT_EQ(a.v, b.v);
  EXPECT_NE(a.q, c.q);
  EXPECT_NE(a.v, c.v);
}

TEST(Synthetic, stripe_keys_outrank_all_others) {
  const AttentionInput input = testing::structured_input({1024, 1, 1, 128}, "stripes");
  // Mean logit of every key over the last 128 queries: the stripes stand out by the strength.
  std::vector<double> mean(896, 0.0);
  for (std::int64_t t = 896; t < 1024; ++t) {
    for (std::int64_t x = 0; x < 896; ++x) {
      double dot = 0.0;
      for (int i = 0; i < 128; ++i) {
        dot += static_cast<double>(input.q[static_cast<std::size_t>(t * 128 + i)]) *
               static_cast<double>(input.k[static_cast<std::size_t>(x * 128 + i)]);
      }
      mean[static_cast<std::size_t>(x)] +=
          dot * static_cast<double>(input.problem.softmax_scale) / 128;
    }
  }
  const auto stripes = std::count_if(mean.begin(), mean.end(), [](double m) { return m > 4.0; });
  EXPECT_GE(stripes, 2);
  EXPECT_LE(stripes, 25);
}

}  // namespace
}  // namespace s2o
