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

S2O_DEVICE std::int32_t octave_above(float logit) {
  const float bounded = max_of(-1e6f, min_of(1e6f, logit));
  const auto octave = static_cast<std::int32_t>(bounded);
  return octave + (static_cast<float>(octave) < bounded ? 1 : 0);
}
// Over the four lanes that hold a row.
S2O_DEVICE std::int32_t largest_of_quad(std::int32_t largest) {
  largest = larger(largest, shuffle_xor(largest, 1));
  return larger(largest, shuffle_xor(largest, 2));
}

// What makes codes (quantise.h) of a lane's two rows: code = (max(logit, lowest) - lowest) * step,
// of which the upper bits are kept. The octave is at `highest`, up to a rounding to whole logits,
// which `lowest` shares: nothing is lost between octaves.
template <class Format>
struct CodeRows {
  std::int32_t step[2];
  std::int32_t lowest[2];   // logit of code 0; kNoKey before the first visible key
  std::int32_t highest[2];  // of the largest code

  static constexpr std::int32_t kNoKey = -(1 << 30);  // above hidden logits, below all others

  // A row without keys so far; `scale`: logits in base 2 a unit.
  S2O_DEVICE void start(int i, float scale) {
    // Rounding moves no logit by more than 1/64: products of 128 bytes are below 2^21.
    step[i] =
        static_cast<std::int32_t>(max_of(4.0f, min_of(scale * Format::kOctave, 8388608.0f)) + 0.5f);
    lowest[i] = kNoKey;
    highest[i] = kNoKey + range(i);
  }
  // One whose largest logit, in base 2, is this.
  S2O_DEVICE void resume(int i, float logit) {
    highest[i] = at_octave(i, octave_above(logit));
    lowest[i] = highest[i] - range(i);
  }
  S2O_DEVICE bool has_key(int i) const { return lowest[i] != kNoKey; }
  S2O_DEVICE float octave(int i) const { return scaled(i, highest[i]); }
  S2O_DEVICE float logit_of_one(int i) const { return scaled(i, lowest[i]) + Format::kLogOfOne; }
  S2O_DEVICE bool exceeded_by(int i, std::int32_t logit) const { return logit > highest[i]; }
  // To the octave of the row's largest logit, unless it is there; what earlier sums and outputs
  // must be scaled by.
  S2O_DEVICE float raise(int i, std::int32_t largest) {
    if (largest <= highest[i]) return 1.0f;
    const std::int32_t before = lowest[i];
    resume(i, scaled(i, largest));
    return exp2_fast(scaled(i, before) - scaled(i, lowest[i]));
  }
  // Bits of the whole are lost in both terms, not in their sum.
  S2O_DEVICE std::uint32_t code(int i, std::uint32_t logit) const {
    const std::int32_t bounded = larger(static_cast<std::int32_t>(logit), lowest[i]);
    return multiply_add(static_cast<std::uint32_t>(bounded), static_cast<std::uint32_t>(step[i]),
                        0u - static_cast<std::uint32_t>(lowest[i] * step[i]));
  }

 private:
  S2O_DEVICE float scaled(int i, std::int32_t logit) const {
    return static_cast<float>(logit) * (static_cast<float>(step[i]) * (1.0f / Format::kOctave));
  }
  S2O_DEVICE std::int32_t range(int i) const {
    return static_cast<std::int32_t>(Format::kLargest *
                                     reciprocal_fast(static_cast<float>(step[i])));
  }
  S2O_DEVICE std::int32_t at_octave(int i, std::int32_t octave) const {
    const float unit = Format::kOctave * reciprocal_fast(static_cast<float>(step[i]));
    const float logit = static_cast<float>(octave) * unit;
    // Two more than the floats' rounding may take: codes never pass the largest.
    return static_cast<std::int32_t>(max_of(-4e8f, min_of(4e8f, logit))) + 2;
  }
};
// Codes of 32 bits that end in a fraction of 24 or 16.
struct E4m3Codes {
  static constexpr float kOctave = 134217728.0f;  // 8 codes
  static constexpr float kLargest = kLargestCode * 16777216.0f;
  static constexpr float kLogOfOne =
      kLargestCode / 8.0f - kLogOfLargestCode;  // octaves from code 0 to that of 1
};
struct Fp16Codes {
  static constexpr float kOctave = 67108864.0f;  // 1024 codes
  static constexpr float kLargest = kLargestWideCode * 65536.0f;
  static constexpr float kLogOfOne = kLargestWideCode / 1024.0f - kLogOfLargestWideCode;
};

// Octaves rise to the logits where they must: whether they do in a row of this warp, and what
// earlier sums and outputs must be scaled by. Once the largest keys have been seen they rarely do.
template <class Format>
S2O_DEVICE bool raise_rows(const std::uint32_t (&logits)[16][4], CodeRows<Format>& rows,
                           float (&correction)[2]) {
  std::int32_t largest[2];
  largest_sums(logits, largest);
  if (!any_lane(rows.exceeded_by(0, largest[0]) || rows.exceeded_by(1, largest[1]))) return false;
#pragma unroll
  for (int i = 0; i < 2; ++i) correction[i] = rows.raise(i, largest_of_quad(largest[i]));
  return true;
}

// Probabilities in e4m3, 32 columns a fragment. A lane's columns of two neighbouring tiles become
// neighbours: the keys of a tile of values follow each other in that order (quantised_place). In
// the lower halves of two words for each: registers that a product reads must be written after the
// product before it, and make_probabilities does that. Never true, which depends on all codes.
S2O_DEVICE bool make_codes(const std::uint32_t (&logits)[16][4], const CodeRows<E4m3Codes>& rows,
                           float (&)[2], std::uint32_t (&halves)[8][4]) {
  std::uint32_t bits = 0;
#pragma unroll
  for (int n = 0; n < 16; ++n) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const std::uint32_t pair =
          upper_bytes(rows.code(i, logits[n][2 * i]), rows.code(i, logits[n][2 * i + 1]));
      halves[n / 2][n % 2 * 2 + i] = pair;
      bits |= pair;
    }
  }
  return (bits & 0x8000u) != 0;  // no code has a sign
}
S2O_DEVICE void make_probabilities(const std::uint32_t (&halves)[8][4], std::uint32_t (&p)[4][4]) {
#pragma unroll
  for (int step = 0; step < 4; ++step) {
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      const std::uint32_t(&tiles)[4] = halves[step * 2 + e / 2];
      p[step][e] = lower_halves(tiles[e % 2], tiles[2 + e % 2]);
    }
  }
}

// Halves of probabilities in fp16, 16 columns a fragment, and the sums of those halves. Never true.
S2O_DEVICE bool make_codes(const std::uint32_t (&logits)[16][4], const CodeRows<Fp16Codes>& rows,
                           float (&sum)[2], std::uint32_t (&halves)[8][4]) {
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    SumOfHalves even, odd;  // tiles
#pragma unroll
    for (int n = 0; n < 16; ++n) {
      const std::uint32_t pair =
          upper_halves(rows.code(i, logits[n][2 * i]), rows.code(i, logits[n][2 * i + 1]));
      (n % 2 == 0 ? even : odd).add(pair);
      halves[n / 2][n % 2 * 2 + i] = pair;
    }
    sum[i] = even.total() + odd.total();
  }
  return sum[0] + sum[1] < 0.0f;
}
// The whole ones, written after the product before them.
S2O_DEVICE void make_probabilities(const std::uint32_t (&halves)[8][4], std::uint32_t (&p)[8][4]) {
#pragma unroll
  for (int step = 0; step < 8; ++step) {
#pragma unroll
    for (int e = 0; e < 4; ++e) p[step][e] = doubled_halves(halves[step][e]);
  }
}

}  // namespace s2o::device
