// Aggregation over units: the geometric mean and its bootstrap interval.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

namespace s2o {

struct GeometricMean {
  std::optional<double> value;  // empty without values
  // 2.5 and 97.5 % percentiles (linear between order statistics) of the geometric means of
  // resamples with replacement; empty for fewer than two values.
  std::optional<double> low;
  std::optional<double> high;
  int count = 0;
};

// Values are > 0. The resamples depend on (seed, number of values) alone, so every cell of a table
// that covers the same units resamples them alike. Without resamples there is no interval.
GeometricMean geometric_mean(const std::vector<double>& values, int resamples = 0,
                             std::uint64_t seed = 0);

}  // namespace s2o
