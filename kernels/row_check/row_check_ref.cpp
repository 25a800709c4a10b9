#include <algorithm>
#include <cmath>
#include <limits>

#include "kernels/common/parallel.h"
#include "kernels/row_check/row_check.h"

namespace s2o {

std::vector<RowError> row_errors_ref(const Problem& problem, const float* q, const float* k,
                                     const float* v, const float* out,
                                     const std::vector<std::int64_t>& rows) {
  const auto num_rows = static_cast<std::int64_t>(rows.size());
  std::vector<RowError> errors(static_cast<std::size_t>(problem.num_q_heads * num_rows));
  parallel_for(static_cast<std::int64_t>(errors.size()), [&](std::int64_t index) {
    const int head = static_cast<int>(index / num_rows);
    const std::int64_t row = rows[static_cast<std::size_t>(index % num_rows)];
    const std::int64_t own = problem.row_offset(head, row);
    const std::int64_t keys = problem.row_offset(head / problem.group_size(), 0);
    std::vector<double> scores(static_cast<std::size_t>(row + 1));
    double largest = -std::numeric_limits<double>::infinity();
    for (std::int64_t key = 0; key <= row; ++key) {
      double score = 0.0;
      for (int d = 0; d < problem.head_dim; ++d) {
        score += static_cast<double>(q[own + d]) *
                 static_cast<double>(k[keys + key * problem.head_dim + d]);
      }
      score *= static_cast<double>(problem.softmax_scale);
      largest = std::max(largest, score);
      scores[static_cast<std::size_t>(key)] = score;
    }
    double sum = 0.0;
    std::vector<double> exact(static_cast<std::size_t>(problem.head_dim));
    for (std::int64_t key = 0; key <= row; ++key) {
      const double weight = std::exp(scores[static_cast<std::size_t>(key)] - largest);
      sum += weight;
      for (int d = 0; d < problem.head_dim; ++d) {
        exact[static_cast<std::size_t>(d)] +=
            weight * static_cast<double>(v[keys + key * problem.head_dim + d]);
      }
    }
    RowError& found = errors[static_cast<std::size_t>(index)];
    for (int d = 0; d < problem.head_dim; ++d) {
      const double wanted = exact[static_cast<std::size_t>(d)] / sum;
      const double difference = static_cast<double>(out[own + d]) - wanted;
      found.error += difference * difference;
      found.reference += wanted * wanted;
    }
  });
  return errors;
}

}  // namespace s2o
