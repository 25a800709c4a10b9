#include "lib/methods/s2o/key_ranking.h"

#include <Eigen/Dense>
#include <algorithm>
#include <cmath>
#include <cstddef>

#include "kernels/common/ceil_div.h"
#include "kernels/common/parallel.h"
#include "kernels/common/plan_view.h"

namespace s2o {
namespace {

using RowMatrixXf = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
using Rows = Eigen::Map<const RowMatrixXf>;
using Values = Eigen::Map<const Eigen::VectorXf>;

constexpr std::int64_t kBlock = 128;       // keys per block mean
constexpr std::int64_t kScoreChunk = 512;  // keys per product: the scores of a chunk stay in cache

// Queries of several heads, [num_heads * rows, head_dim], scaled by softmax_scale.
RowMatrixXf gather_queries(const AttentionInput& input, int first_q_head, int num_heads,
                           std::int64_t begin, std::int64_t end) {
  const int d = input.problem.head_dim;
  RowMatrixXf queries(num_heads * (end - begin), d);
  for (int h = 0; h < num_heads; ++h) {
    queries.middleRows(h * (end - begin), end - begin) =
        Rows(input.q_head(first_q_head + h) + begin * d, end - begin, d) *
        input.problem.softmax_scale;
  }
  return queries;
}

// 0.5 k' C k of every key, C the diagonal covariance of the (centred, scaled) queries.
Eigen::VectorXf second_order(const RowMatrixXf& centred, const Rows& keys) {
  const auto count = static_cast<float>(centred.rows());
  const Eigen::VectorXf variance = centred.cwiseAbs2().colwise().sum().transpose() / count;
  return keys.cwiseAbs2() * (0.5f * variance);
}

std::vector<float> log_value_distance(const AttentionInput& input) {
  const Problem& problem = input.problem;
  std::vector<float> result(static_cast<std::size_t>(problem.num_kv_heads * problem.seqlen));
  for (int h = 0; h < problem.num_kv_heads; ++h) {
    for (std::int64_t begin = 0; begin < problem.seqlen; begin += kBlock) {
      const Rows v(input.v_head(h) + begin * problem.head_dim,
                   std::min(kBlock, problem.seqlen - begin), problem.head_dim);
      const Eigen::RowVectorXf mean = v.colwise().mean();
      Eigen::Map<Eigen::VectorXf> target(result.data() + h * problem.seqlen + begin, v.rows());
      // The floor keeps a key whose value equals the mean finite: it ranks last.
      target = 0.5f * ((v.rowwise() - mean).rowwise().squaredNorm().array() + 1e-20f).log();
    }
  }
  return result;
}

}  // namespace

KeyRanking::KeyRanking(const AttentionInput& input, const RankingSettings& settings)
    : input_(input), settings_(settings) {
  if (settings.normalizer_aware) lse_ = estimate_lse(input);
  if (settings.value_aware) log_value_ = log_value_distance(input);
}

std::vector<float> KeyRanking::scores(int first_q_head, int num_heads, std::int64_t begin,
                                      std::int64_t end, std::int64_t num_keys) const {
  const Problem& problem = input_.problem;
  const int kv_head = first_q_head / problem.group_size();
  const Keys keys(input_.k_head(kv_head), num_keys, problem.head_dim);
  const RowMatrixXf queries = gather_queries(input_, first_q_head, num_heads, begin, end);
  Eigen::VectorXf lse = Eigen::VectorXf::Zero(queries.rows());
  if (settings_.normalizer_aware) {
    for (int h = 0; h < num_heads; ++h) {
      lse.segment(h * (end - begin), end - begin) =
          Values(lse_.data() + (first_q_head + h) * problem.seqlen + begin, end - begin);
    }
  }
  std::vector<float> result(static_cast<std::size_t>(num_keys));
  Eigen::Map<Eigen::VectorXf> score(result.data(), num_keys);
  score = settings_.form == Ranking::kClusters ? cluster_scores(queries, lse, keys)
                                               : cumulant_scores(queries, lse, keys);
  if (settings_.value_aware) {
    score += Values(log_value_.data() + kv_head * problem.seqlen, num_keys);
  }
  return result;
}

Eigen::VectorXf KeyRanking::cumulant_scores(Matrix queries, const Eigen::VectorXf& lse,
                                            const Keys& keys) const {
  const Eigen::RowVectorXf mean = queries.colwise().mean();
  queries.rowwise() -= mean;
  Eigen::VectorXf direction = mean.transpose();
  if (settings_.normalizer_aware) {
    direction -= queries.transpose() * lse / static_cast<float>(queries.rows());
  }
  Eigen::VectorXf score = keys * direction;
  if (settings_.form == Ranking::kDiagonal) score += second_order(queries, keys);
  return score;
}

Eigen::VectorXf KeyRanking::cluster_scores(const Matrix& queries, const Eigen::VectorXf& lse,
                                           const Keys& keys) const {
  const std::vector<int> cluster =
      cluster_rows(queries, settings_.num_clusters, settings_.cluster_iterations);
  const int num_clusters = 1 + *std::max_element(cluster.begin(), cluster.end());
  // Weights relative to the largest of all: a constant factor does not change the ranking.
  const Eigen::VectorXf weight = (lse.minCoeff() - lse.array()).exp();
  Matrix mean = Matrix::Zero(num_clusters, queries.cols());
  Eigen::VectorXf total = Eigen::VectorXf::Zero(num_clusters);
  for (std::int64_t i = 0; i < queries.rows(); ++i) {
    const int c = cluster[static_cast<std::size_t>(i)];
    mean.row(c) += weight(i) * queries.row(i);
    total(c) += weight(i);
  }
  // An empty cluster, or one whose weights vanish, has log 0 and adds nothing.
  for (int c = 0; c < num_clusters; ++c) mean.row(c) /= std::max(total(c), 1e-30f);
  const Eigen::VectorXf log_total = total.array().log();

  Eigen::VectorXf score(keys.rows());
  Eigen::MatrixXf logits;  // [num_clusters, keys of a chunk]
  for (std::int64_t begin = 0; begin < keys.rows(); begin += kScoreChunk) {
    const std::int64_t count = std::min(kScoreChunk, keys.rows() - begin);
    logits.noalias() = mean * keys.middleRows(begin, count).transpose();
    logits.colwise() += log_total;
    for (std::int64_t j = 0; j < count; ++j) {
      const float largest = logits.col(j).maxCoeff();
      score(begin + j) = largest + std::log((logits.col(j).array() - largest).exp().sum());
    }
  }
  return score;
}

std::vector<int> cluster_rows(const RowMatrixXf& queries, int num_clusters, int iterations) {
  const std::int64_t rows = queries.rows();
  const std::int64_t count = std::min<std::int64_t>(num_clusters, rows);
  RowMatrixXf means(count, queries.cols());
  for (std::int64_t c = 0; c < count; ++c) {
    means.row(c) = queries.row((2 * c + 1) * rows / (2 * count));
  }
  std::vector<int> cluster(static_cast<std::size_t>(rows), 0);
  for (int iteration = 0; iteration < iterations; ++iteration) {
    // The nearest mean m of q has the largest q . m - |m|^2 / 2.
    RowMatrixXf closeness = queries * means.transpose();
    closeness.rowwise() -= 0.5f * means.rowwise().squaredNorm().transpose();
    RowMatrixXf sums = RowMatrixXf::Zero(count, queries.cols());
    Eigen::VectorXf sizes = Eigen::VectorXf::Zero(count);
    for (std::int64_t i = 0; i < rows; ++i) {
      int nearest = 0;
      for (int c = 1; c < count; ++c) {
        if (closeness(i, c) > closeness(i, nearest)) nearest = c;
      }
      cluster[static_cast<std::size_t>(i)] = nearest;
      sums.row(nearest) += queries.row(i);
      sizes(nearest) += 1.0f;
    }
    for (std::int64_t c = 0; c < count; ++c) {
      if (sizes(c) > 0.0f) means.row(c) = sums.row(c) / sizes(c);
    }
  }
  return cluster;
}

std::vector<float> estimate_lse(const AttentionInput& input) {
  const Problem& problem = input.problem;
  const int d = problem.head_dim;
  const std::int64_t num_blocks = ceil_div(problem.seqlen, kBlock);
  std::vector<float> lse(static_cast<std::size_t>(problem.num_q_heads * problem.seqlen));
  parallel_for(problem.num_q_heads, [&](std::int64_t head) {
    const int q_head = static_cast<int>(head);
    const float* k = input.k_head(q_head / problem.group_size());
    RowMatrixXf mean(num_blocks, d);
    RowMatrixXf variance(num_blocks, d);
    for (std::int64_t b = 0; b < num_blocks; ++b) {
      const std::int64_t begin = b * kBlock;
      const std::int64_t count = std::min(kBlock, problem.seqlen - begin);
      const Rows keys(k + begin * d, count, d);
      mean.row(b) = keys.colwise().mean();
      variance.row(b) = (keys.rowwise() - mean.row(b)).cwiseAbs2().colwise().mean();

      const RowMatrixXf q =
          Rows(input.q_head(q_head) + begin * d, count, d) * problem.softmax_scale;
      const RowMatrixXf spread = q.cwiseAbs2() * variance.topRows(b + 1).transpose();
      RowMatrixXf logits = q * mean.topRows(b + 1).transpose();
      logits += spread.unaryExpr([](float x) { return spread_logit(x); });
      logits.leftCols(b).array() += std::log(static_cast<float>(kBlock));
      for (std::int64_t r = 0; r < count; ++r) {
        logits(r, b) += std::log(static_cast<float>(r + 1));
        const float largest = logits.row(r).maxCoeff();
        lse[static_cast<std::size_t>(head * problem.seqlen + begin + r)] =
            largest + std::log((logits.row(r).array() - largest).exp().sum());
      }
    }
  });
  return lse;
}

}  // namespace s2o
