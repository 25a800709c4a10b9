// Uncertainty of a fraction of successes.
#pragma once

#include <cstdint>
#include <string>

namespace s2o {

struct Proportion {
  std::int64_t successes = 0;
  std::int64_t trials = 0;
  double value = 0.0;  // successes / trials
  double low = 0.0;    // Wilson score interval, 95 %
  double high = 0.0;
};

// Needs trials >= 1 and 0 <= successes <= trials.
Proportion wilson_interval(std::int64_t successes, std::int64_t trials);

// "0.933 [0.787, 0.982]"
std::string proportion_text(const Proportion& proportion);

}  // namespace s2o
