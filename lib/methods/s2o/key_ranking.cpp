#include "lib/methods/s2o/key_ranking.h"

#include <Eigen/Dense>
#include <cstddef>

namespace s2o {
namespace {

using RowMatrixXf = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
using Rows = Eigen::Map<const RowMatrixXf>;

}  // namespace

std::vector<float> mean_query_scores(const AttentionInput& input, int first_q_head, int num_heads,
                                     std::int64_t begin, std::int64_t end, std::int64_t num_keys) {
  const Problem& problem = input.problem;
  const int d = problem.head_dim;
  Eigen::VectorXf mean = Eigen::VectorXf::Zero(d);
  for (int h = 0; h < num_heads; ++h) {
    const Rows queries(input.q_head(first_q_head + h) + begin * d, end - begin, d);
    mean += queries.colwise().mean().transpose();
  }
  mean *= problem.softmax_scale / static_cast<float>(num_heads);
  const Rows keys(input.k_head(first_q_head / problem.group_size()), num_keys, d);
  std::vector<float> scores(static_cast<std::size_t>(num_keys));
  Eigen::Map<Eigen::VectorXf>(scores.data(), num_keys) = keys * mean;
  return scores;
}

}  // namespace s2o
