// Gains of the early stop as integers: what the rows of a warp add to the sum that decides about a
// tile.
#pragma once

#include "kernels/attention/kernel_args.h"
#include "kernels/device/online_softmax.cuh"

namespace s2o::device {

// The gain of a tile at which it goes on: tau. No lane gives more than it, which keeps the tile
// from stopping as well as the true number would.
inline constexpr std::uint32_t kGainOfTau = 1u << 22;
// Bits that biased_gain adds: those of 2^23.
inline constexpr std::uint32_t kGainBias = 0x4b000000u;

// min(x, kGainOfTau) of x >= 0, rounded, plus kGainBias: added by one instruction, not converted.
S2O_DEVICE std::uint32_t biased_gain(float x) {
  return float_bits(min_of(x, static_cast<float>(kGainOfTau)) + 8388608.0f);
}

// What a row's gain p_blk / l_new is multiplied by, for one of its four lanes. A mean: two of them
// count it. A maximum: less than tau becomes nothing (warp_gains).
S2O_DEVICE float gain_unit(const AttentionKernelArgs& args, float inverse_tau, int num_rows) {
  const float unit = inverse_tau * static_cast<float>(kGainOfTau);
  const float of_mean = 0.5f * unit * reciprocal_fast(static_cast<float>(num_rows));
  return args.stop.reduce == StopReduce::kMean ? of_mean : unit;
}

// Sum over the rows of this warp, from the mass that the step added in each of a lane's two rows.
// Every other lane (`second`) sums the second row of its quad, so that one chain of shuffles serves
// both; `unit` is that of the lane's row.
S2O_DEVICE std::uint32_t warp_gains(const AttentionKernelArgs& args, const RowPair& rows,
                                    const float (&step_mass)[2], float unit, bool second) {
  const float* const sums = rows.normaliser;
  float total = (second ? sums[1] : sums[0]) + shuffle_xor(second ? sums[0] : sums[1], 1);
  float mass =
      (second ? step_mass[1] : step_mass[0]) + shuffle_xor(second ? step_mass[0] : step_mass[1], 1);
  total += shuffle_xor(total, 2);
  mass += shuffle_xor(mass, 2);
  const float inverse = reciprocal_fast(max_of(total, 1e-37f));
  const std::uint32_t counted =
      args.stop.reduce == StopReduce::kMean ? ~0u : ~(kGainOfTau - 1);  // tau or nothing
  return warp_sum(biased_gain(mass * unit * inverse) & counted) - 32u * kGainBias;
}

}  // namespace s2o::device
