// Scores that rank the history of a segment: an estimate of the log of the softmax mass that key x
// receives from the queries of the segment, up to a constant.
//
// Paper (kMean):                 s(x) = scale qbar . k_x
// Second order, by the cumulants of log mean_i exp(scale q_i . k_x - lse_i):
//   kDiagonal                    + 0.5 scale^2 k_x' C k_x       C = diagonal covariance of queries
//   normalizer_aware             - scale Cov(q, lse) . k_x      queries whose mass is spread over
//                                                               many keys have less to give to x
// Clusters of similar queries, each as its mean (kClusters):
//                                s(x) = log sum_c W_c exp(scale q_c . k_x)
//   normalizer_aware             q_c = mean of the cluster's queries weighted by exp(-lse_i), W_c =
//                                the sum of these weights; without it all weights are 1. With one
//                                cluster per query and exact lse this is the log of the mass
//                                itself; with one cluster it is the paper's score.
// With each of them:
//   value_aware                  + log |v_x - mean v of its block|, the output error that a skipped
//                                  key causes once its block's mean stands in for it
// The lse of the queries are estimated from block means (estimate_lse).
#pragma once

#include <Eigen/Dense>
#include <cstdint>
#include <vector>

#include "lib/input/attention_input.h"

namespace s2o {

// kRows is not a score of this file but lib/methods/s2o/row_ranking.h.
enum class Ranking { kMean, kDiagonal, kClusters, kRows };

struct RankingSettings {
  Ranking form;
  int num_clusters;        // of kClusters
  int cluster_iterations;  // of Lloyd's algorithm, from rows at equal distances
  bool normalizer_aware;
  bool value_aware;
};

class KeyRanking {
 public:
  KeyRanking(const AttentionInput& input, const RankingSettings& settings);

  // Scores of keys [0, num_keys) for the queries [begin, end) of `num_heads` query heads from
  // `first_q_head` on, which share a KV head.
  std::vector<float> scores(int first_q_head, int num_heads, std::int64_t begin, std::int64_t end,
                            std::int64_t num_keys) const;

 private:
  using Matrix = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
  using Keys = Eigen::Map<const Matrix>;
  Eigen::VectorXf cumulant_scores(Matrix queries, const Eigen::VectorXf& lse,
                                  const Keys& keys) const;
  Eigen::VectorXf cluster_scores(const Matrix& queries, const Eigen::VectorXf& lse,
                                 const Keys& keys) const;

  const AttentionInput& input_;
  const RankingSettings settings_;
  std::vector<float> lse_;        // [num_q_heads, seqlen], empty unless normalizer_aware
  std::vector<float> log_value_;  // [num_kv_heads, seqlen], empty unless value_aware
};

// Cluster of each of the rows, [queries.rows()]: `iterations` assignments to the nearest mean, ties
// to the lower one, the first means being rows at equal distances.
std::vector<int> cluster_rows(
    const Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>& queries,
    int num_clusters, int iterations);

// lse[t] of every query, [num_q_heads, seqlen], from the mean and the diagonal variance of its
// causal keys in blocks of 128; the block that holds t counts up to t. Costs 2/128 of Q K'.
std::vector<float> estimate_lse(const AttentionInput& input);

}  // namespace s2o
