// What the two kernels of estimated normalisers share (estimate_lse.cuh, estimate_lse_sm90.cuh): a
// thread holds some columns of a few rows of the products q . mean and q^2 . variance, blocks of
// keys being the columns, and keeps their running log-sum-exp.
#pragma once

#include "kernels/planning/s2o/cluster_ops.h"
#include "kernels/planning/s2o/mean_queries.cuh"
#include "kernels/planning/shared/platform_planning.cuh"

namespace s2o::device {

// Logit of a block in units of log2: the mean logit and what the spread of its keys adds to the sum
// (spread_logit of plan_view.h).
template <class Element>
struct LseLogit {
  // Variances and squares of queries are kept times kVarianceUnit each.
  static constexpr float kUnit = kVarianceUnit<Element> * kVarianceUnit<Element>;
  float scale;
  float square_scale;

  S2O_DEVICE explicit LseLogit(const LseArgs& args)
      : scale(args.softmax_scale * kLog2E),
        square_scale(args.softmax_scale * args.softmax_scale / kUnit) {}
  S2O_DEVICE float operator()(float logit, float spread) const {
    const float variance = spread * square_scale;
    const float lift = variance <= 1.0f ? variance * (0.5f * kLog2E)
                                        : fused(square_root_fast(variance), kLog2E, -0.5f * kLog2E);
    return fused(logit, scale, lift);
  }
};

// log2 of the part of the row's own block that it sees.
S2O_DEVICE float lse_own_share(int row) {
  return log_natural(static_cast<float>(row + 1) / static_cast<float>(kMomentBlock)) * kLog2E;
}

// Over one row, of this thread's columns: log2.
struct LseSum {
  float largest = kNoWeight;
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
  // Natural log over the quad that holds the row.
  S2O_DEVICE float finish() const {
    const float all = quad_max(largest);
    const float total = quad_sum(sum * exp2_fast(largest - all));
    return fused(all, kLn2, log_natural(total * static_cast<float>(kMomentBlock)));
  }
};

}  // namespace s2o::device
