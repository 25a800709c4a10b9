#include "lib/report/geometric_mean.h"

#include <algorithm>
#include <cmath>

#include "lib/core/random.h"

namespace s2o {
namespace {

double percentile(const std::vector<double>& sorted, double fraction) {
  const double position = fraction * static_cast<double>(sorted.size() - 1);
  const auto below = static_cast<std::size_t>(std::floor(position));
  const std::size_t above = std::min(below + 1, sorted.size() - 1);
  const double weight = position - static_cast<double>(below);
  return (1.0 - weight) * sorted[below] + weight * sorted[above];
}

}  // namespace

GeometricMean geometric_mean(const std::vector<double>& values, int resamples, std::uint64_t seed) {
  GeometricMean result;
  result.count = static_cast<int>(values.size());
  if (values.empty()) return result;
  std::vector<double> logs;
  double sum = 0.0;
  for (double value : values) {
    logs.push_back(std::log(value));
    sum += logs.back();
  }
  const auto n = static_cast<std::int64_t>(logs.size());
  result.value = std::exp(sum / static_cast<double>(n));
  if (n < 2 || resamples < 1) return result;

  std::vector<double> means;
  for (int resample = 0; resample < resamples; ++resample) {
    const CounterRandom random(seed, static_cast<std::uint64_t>(resample));
    double resampled = 0.0;
    for (std::int64_t i = 0; i < n; ++i) {
      resampled += logs[static_cast<std::size_t>(random.below(static_cast<std::uint64_t>(i), n))];
    }
    means.push_back(resampled / static_cast<double>(n));
  }
  std::sort(means.begin(), means.end());
  result.low = std::exp(percentile(means, 0.025));
  result.high = std::exp(percentile(means, 0.975));
  return result;
}

}  // namespace s2o
