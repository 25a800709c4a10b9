#include "lib/prefill/error_estimate.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "lib/core/random.h"

namespace s2o {
namespace {

// Of Student's t with these degrees of freedom, 97.5 %: its expansion in their inverse (Abramowitz
// and Stegun 26.7.5), off by 0.7 % at 2 degrees and 11 % at 1.
double quantile975(double freedom) {
  constexpr double z = 1.959964;
  constexpr double z2 = z * z;
  const double x = 1.0 / freedom;
  const double first = (z2 + 1.0) / 4.0;
  const double second = ((5.0 * z2 + 16.0) * z2 + 3.0) / 96.0;
  const double third = (((3.0 * z2 + 19.0) * z2 + 17.0) * z2 - 15.0) / 384.0;
  const double fourth =
      ((((79.0 * z2 + 776.0) * z2 + 1482.0) * z2 - 1920.0) * z2 - 945.0) / 92160.0;
  return z * (1.0 + x * (first + x * (second + x * (third + x * fourth))));
}

}  // namespace

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
  ErrorEstimate estimate;
  double variance = 0.0;
  double per_freedom = 0.0;  // squared variances of layers by their degrees of freedom
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
    if (num_rows < 2) {
      estimate.margin = std::numeric_limits<double>::infinity();  // one row says nothing of others
      continue;
    }
    const auto n = static_cast<double>(num_rows);
    const double of_ratio = squares * n / (n - 1.0) / (sum.reference * sum.reference);
    const double of_layer = weights[layer] * weights[layer] * of_ratio;
    variance += of_layer;
    per_freedom += of_layer * of_layer / (n - 1.0);
  }
  // Degrees of freedom of a sum of estimated variances: Welch and Satterthwaite.
  if (variance > 0.0) {
    estimate.margin += quantile975(variance * variance / per_freedom) * std::sqrt(variance);
  }
  return estimate;
}

}  // namespace s2o
