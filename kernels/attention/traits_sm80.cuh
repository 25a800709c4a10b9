// Tile shapes of the portable kernel, one constexpr table read by the kernel and its launcher.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/attention/steps.cuh"
#include "kernels/device/layout.cuh"
#include "kernels/device/online_softmax.cuh"

namespace s2o::device {

// kTileM query rows x kTileN keys a step. With these shapes dense attention reaches 0.95 of
// FlashAttention-2 on an H200 (results/performance.md).
template <class ElementType, int kHeadDimValue, int kTileMValue, int kTileNValue, int kPvTermsValue>
struct TraitsSm80 {
  using Element = ElementType;
  static constexpr int kHeadDim = kHeadDimValue;
  static constexpr int kTileM = kTileMValue;
  static constexpr int kTileN = kTileNValue;
  // P enters the product with V as a sum of this many 16-bit terms: 1 in general, 3 to reach fp32
  // accuracy (8 bits of mantissa each).
  static constexpr int kPvTerms = kPvTermsValue;

  // 128 x 64: 4 warps of 32 rows, so that each fragment of K and V read from shared memory feeds
  // two products (16 rows a warp would saturate shared memory before the tensor cores), and two
  // blocks share a multiprocessor. Other shapes: 16 rows a warp, or the accumulators would not fit.
  static constexpr int kWarps = kTileM == 128 && kTileN == 64 && kHeadDim <= 128 ? 4 : kTileM / 16;
  static constexpr int kThreads = 32 * kWarps;
  static constexpr int kRowsPerWarp = kTileM / kWarps;
  static constexpr int kRowTiles = kRowsPerWarp / 16;
  static constexpr int kMinBlocksPerMultiprocessor = kThreads == 128 ? 2 : 1;

  // Columns of a tile in shared memory: whole panels. Those beyond head_dim are never read.
  static constexpr int kColumns = (kHeadDim + kPanelColumns - 1) / kPanelColumns * kPanelColumns;

  static_assert(kHeadDim == 64 || kHeadDim == 96 || kHeadDim == 128 || kHeadDim == 256);
  static_assert(kTileM % (16 * kWarps) == 0 && kTileN % 16 == 0);
  static_assert(kThreads >= kTileM && kThreads >= kTileN, "one thread per row and per key index");
};

template <class Traits>
struct SharedSm80 {
  alignas(128) unsigned char q[tile_bytes(Traits::kTileM, Traits::kColumns)];
  alignas(128) unsigned char k[tile_bytes(Traits::kTileN, Traits::kColumns)];
  alignas(128) unsigned char v[tile_bytes(Traits::kTileN, Traits::kColumns)];
  RowPair row_states[Traits::kRowTiles * Traits::kThreads];
  std::int32_t row_index[Traits::kTileM];     // row of q, out and lse, -1 beyond the last row
  std::int32_t row_position[Traits::kTileM];  // original position
  alignas(16) std::int32_t keys[2][Traits::kTileN];  // tokens of a step and the next
  StepInfo steps[4];                                 // step j at j % 4
  StepWalker walker;                                 // used by thread 0
  TileStats stats;                                   // counted by thread 0
  std::int64_t kv_head_bytes;                        // from the start of K and of V
  std::int32_t plan_head;
  std::int32_t num_rows;          // rows of the tile that exist
  std::int32_t first_position;    // smallest position of the tile
  std::int32_t total_plan_steps;  // of the tile, only with the PV skip
  float tau;                      // of the plan head
  // Each thread's part of the mass of the plan step so far, for the early stop.
  float plan_step_mass[Traits::kThreads][Traits::kRowTiles][2];
  float warp_gain[Traits::kWarps];
  float warp_excess[Traits::kWarps];
};

}  // namespace s2o::device
