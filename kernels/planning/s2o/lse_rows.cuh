// Running log-sum-exp of rows whose terms come step by step, each thread holding some columns.
#pragma once

#include "kernels/planning/shared/platform_planning.cuh"

namespace s2o::device {

// In place of a term that does not count, far below what a sum begins with at any scale: finite, so
// that differences are not NaN.
inline constexpr float kNoTerm = -1e30f;

// Over one row, of this thread's columns: log2.
struct LseSum {
  float largest = -1e20f;
  float sum = 0.0f;

  // Terms are scale x + bias, scale > 0.
  template <int kCount>
  S2O_DEVICE void add(const float (&x)[kCount], float scale, float bias) {
    float most = x[0];
#pragma unroll
    for (int i = 1; i < kCount; ++i) most = max_of(most, x[i]);
    const float higher = max_of(largest, fused(most, scale, bias));
    const float shift = bias - higher;
    sum *= exp2_fast(largest - higher);
#pragma unroll
    for (int i = 0; i < kCount; ++i) sum += exp2_fast(fused(x[i], scale, shift));
    largest = higher;
  }
};

}  // namespace s2o::device
