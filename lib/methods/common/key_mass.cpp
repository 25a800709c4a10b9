#include "lib/methods/common/key_mass.h"

#include <Eigen/Dense>
#include <algorithm>
#include <cmath>
#include <cstddef>

namespace s2o {

std::vector<float> key_mass(const PlanContext& context, int q_head, std::int64_t first_row,
                            std::int64_t end_row, std::int64_t end) {
  using RowMatrixXf = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
  constexpr std::int64_t kChunk = 512;  // keys per matrix product
  const AttentionInput& input = context.input;
  const Problem& problem = input.problem;
  const int d = problem.head_dim;
  const std::int64_t num_rows = end_row - first_row;
  const RowMatrixXf q =
      Eigen::Map<const RowMatrixXf>(input.q_head(q_head) + first_row * d, num_rows, d) *
      problem.softmax_scale;
  const float* lse = context.reference.lse.data() + q_head * problem.seqlen + first_row;
  const Eigen::Map<const Eigen::VectorXf> lse_rows(lse, num_rows);
  std::vector<float> mass(static_cast<std::size_t>(end), 0.0f);
  RowMatrixXf p;
  for (std::int64_t begin = 0; begin < end; begin += kChunk) {
    const std::int64_t count = std::min(kChunk, end - begin);
    const Eigen::Map<const RowMatrixXf> k(input.k_head(q_head / problem.group_size()) + begin * d,
                                          count, d);
    p.noalias() = q * k.transpose();
    p = (p.colwise() - lse_rows).array().exp();
    for (std::int64_t r = 0; r < num_rows; ++r) {
      const std::int64_t visible = std::clamp<std::int64_t>(first_row + r + 1 - begin, 0, count);
      p.row(r).tail(count - visible).setZero();
    }
    Eigen::Map<Eigen::RowVectorXf>(mass.data() + begin, count) = p.colwise().sum();
  }
  return mass;
}

}  // namespace s2o
