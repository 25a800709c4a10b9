// Online softmax on accumulator fragments, in base 2. A thread holds two rows of a 16-row tile
// (layout.cuh); a row is spread over the four lanes of a quad. Row maxima are equal in the quad,
// normalisers are partial sums per lane until they are needed.
#pragma once

#include "kernels/device/platform.cuh"

namespace s2o::device {

struct alignas(16) RowPair {
  float maximum[2];     // running maximum of scaled logits (base 2), -inf before the first key
  float normaliser[2];  // this lane's part of sum exp2(logit - maximum)
};

S2O_DEVICE RowPair empty_rows() { return {{kNegativeInfinity, kNegativeInfinity}, {0.0f, 0.0f}}; }

// Largest raw logit of row `i` of the fragment, over the quad.
template <int kColumnTiles>
S2O_DEVICE float row_maximum(const float (&s)[kColumnTiles][4], int i) {
  float largest = kNegativeInfinity;
#pragma unroll
  for (int j = 0; j < kColumnTiles; ++j) {
    largest = max_of(largest, max_of(s[j][2 * i], s[j][2 * i + 1]));
  }
  return quad_max(largest);
}

// Replaces raw logits by probabilities relative to the new maximum. `step_sum` gets this lane's
// part of the step's probabilities, `correction` what earlier sums and outputs must be scaled by.
// A row that has seen no visible key keeps maximum -inf and sums 0.
template <int kColumnTiles>
S2O_DEVICE void softmax_step(float (&s)[kColumnTiles][4], float scale_log2, RowPair& rows,
                             float (&step_sum)[2], float (&correction)[2]) {
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const float step_maximum = row_maximum(s, i) * scale_log2;
    const float maximum = max_of(rows.maximum[i], step_maximum);
    const float reference = maximum == kNegativeInfinity ? 0.0f : maximum;
    correction[i] = exp2_fast(rows.maximum[i] - reference);
    float sum = 0.0f;
#pragma unroll
    for (int j = 0; j < kColumnTiles; ++j) {
#pragma unroll
      for (int c = 0; c < 2; ++c) {
        float& value = s[j][2 * i + c];
        value = exp2_fast(fused(value, scale_log2, -reference));
        sum += value;
      }
    }
    rows.maximum[i] = maximum;
    rows.normaliser[i] = fused(rows.normaliser[i], correction[i], sum);
    step_sum[i] = sum;
  }
}

}  // namespace s2o::device
