// The part of the dense softmax that the visited keys hold.
#pragma once

#include <cmath>
#include <cstdint>

namespace s2o {

// exp(lse - dense_lse), natural logs, the mean over `rows` rows. Above 1 where something stands in
// for keys that are not visited.
inline double mean_mass(const float* lse, const float* dense_lse, std::int64_t rows) {
  double mass = 0.0;
  for (std::int64_t i = 0; i < rows; ++i) {
    mass += std::exp(static_cast<double>(lse[i]) - static_cast<double>(dense_lse[i]));
  }
  return mass / static_cast<double>(rows);
}

}  // namespace s2o
