// Running log-sum-exp of rows whose terms come step by step, each thread holding some columns.
#pragma once

#include "kernels/planning/shared/platform_planning.cuh"

namespace s2o::device {

inline constexpr float kNoTerm = -1e30f;  // finite, so that differences are not NaN

// Over one row, of this thread's columns: log2.
struct LseSum {
  float largest = kNoTerm;
  float sum = 0.0f;

  template <int kCount>
  S2O_DEVICE void add(const float (&x)[kCount]) {
    float higher = largest;
#pragma unroll
    for (int i = 0; i < kCount; ++i) higher = max_of(higher, x[i]);
    sum *= exp2_fast(largest - higher);
#pragma unroll
    for (int i = 0; i < kCount; ++i) sum += exp2_fast(x[i] - higher);
    largest = higher;
  }
};

}  // namespace s2o::device
