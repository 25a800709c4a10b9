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

// Both rows at once: independent chains of comparisons, and one round of shuffles after another.
template <int kColumnTiles>
S2O_DEVICE void row_maxima(const float (&s)[kColumnTiles][4], float (&maxima)[2]) {
  float even[2] = {s[0][0], s[0][2]};
  float odd[2] = {s[0][1], s[0][3]};
#pragma unroll
  for (int j = 1; j < kColumnTiles; ++j) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      even[i] = max_of(even[i], s[j][2 * i]);
      odd[i] = max_of(odd[i], s[j][2 * i + 1]);
    }
  }
#pragma unroll
  for (int i = 0; i < 2; ++i) maxima[i] = max_of(even[i], odd[i]);
#pragma unroll
  for (int mask = 1; mask <= 2; mask *= 2) {
    const float other[2] = {shuffle_xor(maxima[0], mask), shuffle_xor(maxima[1], mask)};
#pragma unroll
    for (int i = 0; i < 2; ++i) maxima[i] = max_of(maxima[i], other[i]);
  }
}

// The new maxima of a step of raw logits: `reference` is what its logits are taken relative to (0
// where a row has seen no visible key), `correction` what earlier sums and outputs must be scaled
// by.
template <int kColumnTiles>
S2O_DEVICE void softmax_maxima(const float (&s)[kColumnTiles][4], float scale_log2, RowPair& rows,
                               float (&reference)[2], float (&correction)[2]) {
  float step_maximum[2];
  row_maxima(s, step_maximum);
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const float maximum = max_of(rows.maximum[i], step_maximum[i] * scale_log2);
    reference[i] = maximum == kNegativeInfinity ? 0.0f : maximum;
    correction[i] = exp2_fast(rows.maximum[i] - reference[i]);
    rows.maximum[i] = maximum;
  }
}

// Replaces the raw logits of column tiles [kBegin, kEnd) by probabilities, and adds them to the
// sums.
template <int kBegin, int kEnd, int kColumnTiles>
S2O_DEVICE void softmax_columns(float (&s)[kColumnTiles][4], float scale_log2,
                                const float (&reference)[2], float (&sum)[2]) {
#pragma unroll
  for (int i = 0; i < 2; ++i) {
#pragma unroll
    for (int j = kBegin; j < kEnd; ++j) {
#pragma unroll
      for (int c = 0; c < 2; ++c) {
        float& value = s[j][2 * i + c];
        value = exp2_fast(fused(value, scale_log2, -reference[i]));
        sum[i] += value;
      }
    }
  }
}

// Replaces raw logits by probabilities relative to the new maximum. `step_sum` gets this lane's
// part of the step's probabilities, `correction` what earlier sums and outputs must be scaled by.
// A row that has seen no visible key keeps maximum -inf and sums 0.
template <int kColumnTiles>
S2O_DEVICE void softmax_step(float (&s)[kColumnTiles][4], float scale_log2, RowPair& rows,
                             float (&step_sum)[2], float (&correction)[2]) {
  float reference[2];
  softmax_maxima(s, scale_log2, rows, reference, correction);
  step_sum[0] = step_sum[1] = 0.0f;
  softmax_columns<0, kColumnTiles>(s, scale_log2, reference, step_sum);
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    rows.normaliser[i] = fused(rows.normaliser[i], correction[i], step_sum[i]);
  }
}

}  // namespace s2o::device
