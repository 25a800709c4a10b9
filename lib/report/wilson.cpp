#include "lib/report/wilson.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

namespace s2o {

Proportion wilson_interval(std::int64_t successes, std::int64_t trials) {
  constexpr double kZ = 1.959963984540054;  // two-sided 95 % of the normal distribution
  const auto n = static_cast<double>(trials);
  const double p = static_cast<double>(successes) / n;
  const double middle = (p + kZ * kZ / (2.0 * n)) / (1.0 + kZ * kZ / n);
  const double half =
      kZ / (1.0 + kZ * kZ / n) * std::sqrt(p * (1.0 - p) / n + kZ * kZ / (4.0 * n * n));
  return {.successes = successes,
          .trials = trials,
          .value = p,
          // At the ends the interval touches them exactly; rounding must not step over.
          .low = successes == 0 ? 0.0 : std::max(0.0, middle - half),
          .high = successes == trials ? 1.0 : std::min(1.0, middle + half)};
}

std::string proportion_text(const Proportion& proportion) {
  return fmt::format("{:.3f} [{:.3f}, {:.3f}]", proportion.value, proportion.low, proportion.high);
}

}  // namespace s2o
