// The two products of a step over quantised input, and what happens to a thread's fragments between
// them (layout.cuh). Logits are integers: tiles [tiles][4] of the bits. Probabilities are codes
// (quantise.h).
#pragma once

#include "kernels/attention/quantise.h"
#include "kernels/attention/quantised_input.h"
#include "kernels/device/bytes_sm90.cuh"
#include "kernels/device/online_softmax.cuh"

namespace s2o::device {

// logits = Q K^T, issued and committed; shared addresses of the warpgroup's first query and of the
// tile of keys.
S2O_DEVICE void multiply_quantised_keys(std::uint32_t queries, std::uint32_t keys,
                                        std::uint32_t (&logits)[16][4]) {
  const std::uint64_t q = warpgroup_descriptor(queries, 16, 8 * kPanelRowBytes);
  const std::uint64_t k = warpgroup_descriptor(keys, 16, 8 * kPanelRowBytes);
  pin_registers(logits);
  warpgroup_fence();
#pragma unroll
  for (int step = 0; step < 4; ++step) {
    multiply_s8(logits, descriptor_at(q, step * 32), descriptor_at(k, step * 32), step > 0 ? 1 : 0);
  }
  warpgroup_commit();
}

// acc = P V, plus acc where `accumulate` is not 0, issued and committed; V^T: rows of keys, and
// eight rows of ones: `sums` are those of P.
S2O_DEVICE void multiply_quantised_values(std::uint32_t values, std::uint32_t (&p)[4][4],
                                          float (&acc)[16][4], float (&sums)[1][4],
                                          int accumulate) {
  const std::uint64_t v = warpgroup_descriptor(values, 16, 8 * kPanelRowBytes);
  pin_registers(acc);
  pin_registers(sums);
  pin_registers(p);
  warpgroup_fence();
#pragma unroll
  for (int step = 0; step < 4; ++step) {
    multiply_e4m3_registers(acc, sums[0], p[step], descriptor_at(v, step * 32),
                            step > 0 ? 1 : accumulate);
  }
  warpgroup_commit();
}
// acc += P V in fp16; V: rows of values, in two panels of 64 columns.
S2O_DEVICE void multiply_wide_values(std::uint32_t values, std::uint32_t (&p)[8][4],
                                     float (&acc)[16][4]) {
  const std::uint64_t v = warpgroup_descriptor(values, 128 * kPanelRowBytes, 8 * kPanelRowBytes);
  pin_registers(acc);
  pin_registers(p);
  warpgroup_fence();
#pragma unroll
  for (int step = 0; step < 8; ++step) {
    warpgroup_multiply_transposed<Fp16>(acc, p[step], descriptor_at(v, step * 16 * kPanelRowBytes),
                                        1);
  }
  warpgroup_commit();
}

// Below all sums of 128 products, and of a code below 0.
inline constexpr std::uint32_t kHiddenSum = 0x80000000u;

// Logits of columns that are not `visible` (bits as in lane_columns_below) become kHiddenSum.
S2O_DEVICE void hide_sums(const std::uint32_t (&visible)[2], std::uint32_t (&logits)[16][4]) {
#pragma unroll
  for (int n = 0; n < 16; ++n) {
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      if ((visible[e / 2] >> (2 * n + e % 2) & 1u) == 0) logits[n][e] = kHiddenSum;
    }
  }
}

// Largest logits of this lane in both rows.
S2O_DEVICE void largest_sums(const std::uint32_t (&logits)[16][4], std::int32_t (&largest)[2]) {
  const auto at = [&logits](int n, int e) { return static_cast<std::int32_t>(logits[n][e]); };
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    std::int32_t even = larger(at(0, 2 * i), at(0, 2 * i + 1));
    std::int32_t odd = larger(at(1, 2 * i), at(1, 2 * i + 1));
#pragma unroll
    for (int n = 2; n < 16; n += 2) {
      even = largest_of_three(even, at(n, 2 * i), at(n, 2 * i + 1));
      odd = largest_of_three(odd, at(n + 1, 2 * i), at(n + 1, 2 * i + 1));
    }
    largest[i] = larger(even, odd);
  }
}

// What makes codes (quantise.h) of a lane's two rows: code = (logit * step >> 32) + offset, where
// 2^32 in `step` is one code a unit of the logit.
struct CodeRows {
  std::int32_t step[2];
  std::int32_t offset[2];  // kLargestCode - 8 octave; step / 4 before the first visible key
};
// From logits in base 2 a unit. Bounds: a hidden logit stays below all others, and offsets of rows
// without a visible key between the two; steps so small tell no keys apart anyway.
S2O_DEVICE std::int32_t code_step(float scale_log2) {
  constexpr float kUnit = 34359738368.0f;  // 8 * 2^32
  return static_cast<std::int32_t>(max_of(1024.0f, min_of(scale_log2 * kUnit, 2147483520.0f)));
}
S2O_DEVICE std::int32_t octave_of(std::int32_t offset) { return (kLargestCode - offset) >> 3; }
S2O_DEVICE std::int32_t octave_above(float logit) {
  const float bounded = max_of(-1e6f, min_of(1e6f, logit));
  const auto octave = static_cast<std::int32_t>(bounded);
  return octave + (static_cast<float>(octave) < bounded ? 1 : 0);
}
// Offset of an octave, but none that a row without visible keys could not have.
S2O_DEVICE std::int32_t code_offset(std::int32_t octave, std::int32_t step) {
  const std::int32_t offset = kLargestCode - 8 * octave;
  const std::int32_t highest = step >> 2;
  return offset < highest ? offset : highest;
}

// Whether a row of this warp has a logit above what its codes reach.
S2O_DEVICE bool exceeds_codes(const CodeRows& rows, const std::int32_t (&largest)[2]) {
  return any_lane(multiply_high(largest[0], rows.step[0], rows.offset[0]) > kLargestCode ||
                  multiply_high(largest[1], rows.step[1], rows.offset[1]) > kLargestCode);
}
// Then octaves rise to the largest logits; what earlier sums and outputs must be scaled by.
S2O_DEVICE void raise_octaves(std::int32_t (&largest)[2], CodeRows& rows, float (&correction)[2]) {
#pragma unroll
  for (int i = 0; i < 2; ++i) {
#pragma unroll
    for (int mask = 1; mask <= 2; mask *= 2) {
      largest[i] = larger(largest[i], shuffle_xor(largest[i], mask));
    }
    const std::int32_t octave = (multiply_high(largest[i], rows.step[i], 0) + 7) >> 3;
    const std::int32_t offset = kLargestCode - 8 * octave;
    const std::int32_t before = rows.offset[i];
    rows.offset[i] = offset < before ? offset : before;
    correction[i] = exp2_fast(static_cast<float>(rows.offset[i] - before) * 0.125f);
  }
}

// Probabilities in e4m3, 32 columns a fragment. A lane's columns of two neighbouring tiles become
// neighbours: the keys of a tile of values follow each other in that order (quantised_place).
S2O_DEVICE void code_logits(const std::uint32_t (&logits)[16][4], const CodeRows& rows,
                            std::uint32_t (&p)[4][4]) {
#pragma unroll
  for (int row = 0; row < 2; ++row) {
#pragma unroll
    for (int step = 0; step < 4; ++step) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        std::int32_t codes[4];
#pragma unroll
        for (int c = 0; c < 4; ++c) {
          const std::uint32_t logit = logits[4 * step + half * 2 + c / 2][2 * row + c % 2];
          codes[c] =
              multiply_high(static_cast<std::int32_t>(logit), rows.step[row], rows.offset[row]);
        }
        p[step][half * 2 + row] = pack_four_bytes(codes[0], codes[1], codes[2], codes[3]);
      }
    }
  }
}

// The codes alone, two neighbouring columns a word, 16 columns a fragment.
S2O_DEVICE void pair_codes(const std::uint32_t (&logits)[16][4], const CodeRows& rows,
                           std::uint32_t (&pairs)[8][4]) {
#pragma unroll
  for (int n = 0; n < 16; ++n) {
#pragma unroll
    for (int row = 0; row < 2; ++row) {
      std::int32_t codes[2];
#pragma unroll
      for (int c = 0; c < 2; ++c) {
        codes[c] = multiply_high(static_cast<std::int32_t>(logits[n][2 * row + c]), rows.step[row],
                                 rows.offset[row]);
      }
      pairs[n / 2][n % 2 * 2 + row] = pack_two_halves(codes[0], codes[1]);
    }
  }
}
// Their probabilities in fp16, times 2^-8, and the sums of those: seven bits further up, the bits
// of a number in e4m3 are those of a number in fp16, below the smallest normal ones too.
inline constexpr float kLogOfWideCodes = -8.0f;
S2O_DEVICE void wide_probabilities(const std::uint32_t (&pairs)[8][4], float (&sum)[2],
                                   std::uint32_t (&p)[8][4]) {
#pragma unroll
  for (int row = 0; row < 2; ++row) {
    SumOfHalves even, odd;  // tiles
#pragma unroll
    for (int n = 0; n < 16; ++n) {
      const int e = n % 2 * 2 + row;
      p[n / 2][e] = pairs[n / 2][e] << 7;
      (n % 2 == 0 ? even : odd).add(p[n / 2][e]);
    }
    sum[row] = even.total() + odd.total();
  }
}

}  // namespace s2o::device
