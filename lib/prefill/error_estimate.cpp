#include "lib/prefill/error_estimate.h"

#include <algorithm>
#include <cmath>

#include "lib/core/random.h"

namespace s2o {

std::vector<std::int64_t> checked_rows(std::int64_t seqlen, int count, std::uint64_t seed,
                                       int layer) {
  const std::int64_t parts = std::min<std::int64_t>(count, seqlen);
  const CounterRandom random(seed, static_cast<std::uint64_t>(layer));
  std::vector<std::int64_t> rows;
  for (std::int64_t i = 0; i < parts; ++i) {
    const std::int64_t begin = i * seqlen / parts;
    const std::int64_t end = (i + 1) * seqlen / parts;
    rows.push_back(begin + random.below(static_cast<std::uint64_t>(i), end - begin));
  }
  return rows;
}

ErrorEstimate estimate_error(const std::vector<std::vector<RowError>>& layers, int num_q_heads,
                             std::span<const double> weights) {
  constexpr double kNormal95 = 1.96;
  ErrorEstimate estimate;
  double variance = 0.0;
  for (std::size_t layer = 0; layer < layers.size(); ++layer) {
    // Heads of a row are read together: the row is what is drawn.
    const std::size_t num_rows = layers[layer].size() / static_cast<std::size_t>(num_q_heads);
    std::vector<RowError> rows(num_rows);
    RowError sum;
    for (std::size_t i = 0; i < layers[layer].size(); ++i) {
      const RowError& found = layers[layer][i];
      rows[i % num_rows].error += found.error;
      rows[i % num_rows].reference += found.reference;
      sum.error += found.error;
      sum.reference += found.reference;
    }
    if (!(sum.reference > 0.0)) continue;
    const double ratio = sum.error / sum.reference;
    double squares = 0.0;
    for (const RowError& row : rows) {
      const double residual = row.error - ratio * row.reference;
      squares += residual * residual;
    }
    estimate.value += weights[layer] * ratio;
    if (num_rows < 2) continue;
    const auto n = static_cast<double>(num_rows);
    const double of_ratio = squares * n / (n - 1.0) / (sum.reference * sum.reference);
    variance += weights[layer] * weights[layer] * of_ratio;
  }
  estimate.margin = kNormal95 * std::sqrt(variance);
  return estimate;
}

}  // namespace s2o
