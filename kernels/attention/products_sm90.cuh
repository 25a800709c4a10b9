// The two products of a step by a consumer warpgroup, issued and committed: 64 rows of Q or P, and
// a tile of K or V in shared memory, swizzled (layout.cuh).
#pragma once

#include "kernels/attention/traits_sm90.cuh"
#include "kernels/device/wgmma_sm90.cuh"

namespace s2o::device {

// logits = Q K^T; shared addresses of the warpgroup's first query and of the tile of keys.
template <class Traits>
S2O_DEVICE void multiply_keys_sm90(std::uint32_t queries, std::uint32_t keys,
                                   float (&logits)[Traits::kTileN / 8][4]) {
  const std::uint64_t q = warpgroup_descriptor(queries, 16, 8 * kPanelRowBytes);
  const std::uint64_t k = warpgroup_descriptor(keys, 16, 8 * kPanelRowBytes);
  pin_registers(logits);
  warpgroup_fence();
#pragma unroll
  for (int step = 0; step < Traits::kHeadDim / 16; ++step) {
    const int in_panel = step % 4 * 32;  // 16 elements of a 128-byte row
    warpgroup_multiply<typename Traits::Element>(
        logits, descriptor_at(q, step / 4 * Traits::kTileM * kPanelRowBytes + in_panel),
        descriptor_at(k, step / 4 * Traits::kTileN * kPanelRowBytes + in_panel), step > 0 ? 1 : 0);
  }
  warpgroup_commit();
}

// acc += P V, or acc = P V where `accumulate` is 0.
template <class Traits>
S2O_DEVICE void multiply_values_sm90(std::uint32_t values,
                                     std::uint32_t (&p)[Traits::kTileN / 16][4],
                                     float (&acc)[Traits::kHeadDim / 8][4], int accumulate = 1) {
  const std::uint64_t v =
      warpgroup_descriptor(values, Traits::kTileN * kPanelRowBytes, 8 * kPanelRowBytes);
  pin_registers(acc);
  warpgroup_fence();
#pragma unroll
  for (int step = 0; step < Traits::kTileN / 16; ++step) {
    warpgroup_multiply_transposed<typename Traits::Element>(
        acc, p[step], descriptor_at(v, step * 16 * kPanelRowBytes), step > 0 ? 1 : accumulate);
  }
  warpgroup_commit();
}

}  // namespace s2o::device
