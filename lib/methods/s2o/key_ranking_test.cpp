#include "lib/methods/s2o/key_ranking.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <numeric>

#include "lib/testing/inputs.h"

namespace s2o {
namespace {

using RowMatrixXf = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
using ::testing::ElementsAre;
using ::testing::FloatNear;
using ::testing::Pointwise;

constexpr std::int64_t kBegin = 256;
constexpr std::int64_t kEnd = 320;

std::vector<float> scores(const AttentionInput& input, const RankingSettings& settings) {
  return KeyRanking(input, settings).scores(0, 1, kBegin, kEnd, kBegin);
}

// log sum_i exp(scale q_i . k_x - lse_i) over the queries of the segment, fp64.
std::vector<float> exact_scores(const AttentionInput& input, const std::vector<float>& lse) {
  const int d = input.problem.head_dim;
  std::vector<float> result;
  for (std::int64_t x = 0; x < kBegin; ++x) {
    double sum = 0.0;
    for (std::int64_t t = kBegin; t < kEnd; ++t) {
      const float* q = input.q_head(0) + t * d;
      const float* k = input.k_head(0) + x * d;
      sum += std::exp(std::inner_product(q, q + d, k, 0.0) / std::sqrt(d) -
                      lse[static_cast<std::size_t>(t)]);
    }
    result.push_back(static_cast<float>(std::log(sum)));
  }
  return result;
}

void subtract_largest(std::vector<float>& values) {
  const float largest = *std::max_element(values.begin(), values.end());
  for (float& value : values) value -= largest;
}

TEST(KeyRanking, cluster_per_query_is_the_log_of_the_mass) {
  const AttentionInput input = testing::structured_input({kEnd, 2, 1, 64});
  for (const bool normalizer_aware : {false, true}) {
    std::vector<float> expected = exact_scores(
        input, normalizer_aware ? estimate_lse(input) : std::vector<float>(2 * kEnd, 0.0f));
    std::vector<float> found = scores(input, {.form = Ranking::kClusters,
                                              .num_clusters = 64,
                                              .cluster_iterations = 3,
                                              .normalizer_aware = normalizer_aware});
    subtract_largest(expected);
    subtract_largest(found);
    EXPECT_THAT(found, Pointwise(FloatNear(1e-3f), expected)) << normalizer_aware;
  }
}

TEST(KeyRanking, one_cluster_is_the_mean_query) {
  const AttentionInput input = testing::structured_input({kEnd, 2, 1, 64});
  std::vector<float> mean = scores(input, {.form = Ranking::kMean});
  std::vector<float> cluster =
      scores(input, {.form = Ranking::kClusters, .num_clusters = 1, .cluster_iterations = 3});
  subtract_largest(mean);
  subtract_largest(cluster);
  EXPECT_THAT(cluster, Pointwise(FloatNear(1e-4f), mean));
}

// A key that four of 64 queries want, and one that all want a little.
TEST(KeyRanking, clusters_find_the_key_that_few_queries_want) {
  AttentionInput input;
  input.problem = {.seqlen = kEnd, .num_q_heads = 1, .num_kv_heads = 1, .head_dim = 16};
  input.q.assign(kEnd * 16, 0.0f);
  input.k.assign(kEnd * 16, 0.0f);
  input.v.assign(kEnd * 16, 1.0f);
  for (std::int64_t t = 0; t < kEnd; ++t) input.q[static_cast<std::size_t>(t * 16)] = 4.0f;
  for (const std::int64_t t : {300, 301, 302, 303}) {
    input.q[static_cast<std::size_t>(t * 16 + 1)] = 8.0f;
  }
  input.k[100 * 16] = 4.0f;
  input.k[200 * 16 + 1] = 8.0f;
  validate_attention_input(input, false);
  const auto best = [](const std::vector<float>& s) {
    return std::max_element(s.begin(), s.end()) - s.begin();
  };
  EXPECT_EQ(best(scores(input, {.form = Ranking::kMean})), 100);
  EXPECT_EQ(
      best(scores(input, {.form = Ranking::kClusters, .num_clusters = 4, .cluster_iterations = 3})),
      200);
}

TEST(KeyRanking, rows_of_two_groups_fall_into_two_clusters) {
  RowMatrixXf rows(6, 2);
  rows << 0, 0, 9, 9, 0, 1, 9, 8, 1, 0, 8, 9;
  EXPECT_THAT(cluster_rows(rows, 2, 3), ElementsAre(1, 0, 1, 0, 1, 0));
}

TEST(KeyRanking, equal_rows_and_more_clusters_than_rows_are_fine) {
  const RowMatrixXf equal = RowMatrixXf::Ones(5, 3);
  EXPECT_THAT(cluster_rows(equal, 3, 2), ElementsAre(0, 0, 0, 0, 0));
  RowMatrixXf rows(2, 1);
  rows << -1, 1;
  EXPECT_THAT(cluster_rows(rows, 32, 3), ElementsAre(0, 1));
}

}  // namespace
}  // namespace s2o
