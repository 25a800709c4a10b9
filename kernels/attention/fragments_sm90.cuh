// What a thread of a consumer warpgroup does to its accumulator fragments (layout.cuh): [tiles][4]
// holds columns 8 n and 8 n + 1 after its first one of two rows, 2 i and 2 i + 1 those of row i.
#pragma once

#include "kernels/attention/steps.cuh"
#include "kernels/device/online_softmax.cuh"
#include "kernels/device/store_sm90.cuh"
#include "kernels/device/wgmma_sm90.cuh"

namespace s2o::device {

// The columns of a lane (bits as in lane_columns_below) that see their key; `keys` are the tokens
// from the lane's first column on, of which `count` columns exist.
template <int kColumns>
S2O_DEVICE void visible_gathered_columns(const VisibleKeys (&visible)[2], const std::int32_t* keys,
                                         int count, std::uint32_t (&columns)[2]) {
  columns[0] = columns[1] = 0;
  const std::uint32_t valid = lane_columns_below(count);
#pragma unroll 1  // a few lines of the instruction cache: most steps jump over them
  for (int column = 0; column < kColumns; ++column) {
    const std::int32_t token = keys[column / 2 * 8 + column % 2];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      columns[i] |= (visible[i].contains(token) ? valid : 0u) & 1u << column;
    }
  }
}

// Logits of all other columns become -inf.
template <int kTiles>
S2O_DEVICE void hide_columns(const std::uint32_t (&visible)[2], float (&logits)[kTiles][4]) {
#pragma unroll
  for (int n = 0; n < kTiles; ++n) {
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      if ((visible[e / 2] >> (2 * n + e % 2) & 1u) == 0) logits[n][e] = kNegativeInfinity;
    }
  }
}

// Packs probabilities into fragments of the next product's left side, in place in program order.
template <class Element, int kTiles>
S2O_DEVICE void pack_probabilities(const float (&logits)[kTiles][4],
                                   std::uint32_t (&p)[kTiles / 2][4]) {
#pragma unroll
  for (int step = 0; step < kTiles / 2; ++step) {
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      const float(&tile)[4] = logits[2 * step + e / 2];
      p[step][e] = pack_pair_here<Element>(tile[2 * (e % 2)], tile[2 * (e % 2) + 1]);
    }
  }
}

template <int kTiles>
S2O_DEVICE void scale_rows(const float (&factor)[2], float (&acc)[kTiles][4]) {
#pragma unroll
  for (int n = 0; n < kTiles; ++n) {
#pragma unroll
    for (int e = 0; e < 4; ++e) acc[n][e] *= factor[e / 2];
  }
}

// Row i += weight times the row of an earlier launch that begins, for this lane, at `out`.
template <int kTiles>
S2O_DEVICE void add_resumed_row(const float* out, float weight, int i, float (&acc)[kTiles][4]) {
#pragma unroll
  for (int n = 0; n < kTiles; ++n) {
    const FloatPair earlier = load_global_pair(out + n * 8);
    acc[n][2 * i] = fused(earlier.low, weight, acc[n][2 * i]);
    acc[n][2 * i + 1] = fused(earlier.high, weight, acc[n][2 * i + 1]);
  }
}

// Writes row i, scaled, to where it begins for this lane.
template <int kTiles>
S2O_DEVICE void store_row(float* out, float scale, int i, const float (&acc)[kTiles][4]) {
#pragma unroll
  for (int n = 0; n < kTiles; ++n) {
    store_global_pair(out + n * 8, acc[n][2 * i] * scale, acc[n][2 * i + 1] * scale);
  }
}
// Puts the 16 rows of a warp, scaled and in 16 bit, into a swizzled tile of num_rows rows in shared
// memory; `first` is the address of their first.
template <class Element, int kTiles>
S2O_DEVICE void store_fragments_16(std::uint32_t first, int num_rows, int lane,
                                   const float (&scale)[2], const float (&acc)[kTiles][4]) {
  const MatrixPosition source = ldmatrix_a_source(static_cast<unsigned>(lane));
  const std::uint32_t address = swizzled_lane_address(first, source.row, source.column);
#pragma unroll
  for (int n = 0; n < kTiles; n += 2) {
    std::uint32_t words[4];
#pragma unroll
    for (int m = 0; m < 4; ++m) {
      const float(&tile)[4] = acc[n + m / 2];
      const int i = m % 2;
      words[m] = pack_pair<Element>(tile[2 * i] * scale[i], tile[2 * i + 1] * scale[i]);
    }
    store_matrix_x4(swizzled_step_address(address, num_rows, 0, n), words);
  }
}

}  // namespace s2o::device
