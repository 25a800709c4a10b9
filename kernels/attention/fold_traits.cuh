// Tile shapes of folded columns, and what a block keeps in shared memory.
#pragma once

#include "kernels/attention/fold_sums.cuh"
#include "kernels/attention/fold_visited.cuh"
#include "kernels/attention/traits_sm80.cuh"

namespace s2o::device {

inline constexpr int kFoldGroup = 16;  // columns built at once
inline constexpr int kFoldGroups = kFoldColumns / kFoldGroup;
inline constexpr int kFoldRows = 16;       // listed rows added at once
inline constexpr int kFoldListRows = 160;  // of a group listed at once
inline constexpr int kFoldStages = 2;      // of listed rows, on their way from memory

// As TraitsSm80, with 32 rows a warp for 128 rows: 16 would read every column from shared memory
// eight times for the products.
template <class ElementType, int kHeadDimValue, int kTileMValue>
struct TraitsFold {
  using Element = ElementType;
  static constexpr int kHeadDim = kHeadDimValue;
  static constexpr int kTileM = kTileMValue;
  static constexpr int kTileN = kFoldColumns;
  static constexpr int kPvTerms = 1;
  static constexpr int kRowsPerWarp = kTileM == 128 ? 32 : 16;
  static constexpr int kRowTiles = kRowsPerWarp / 16;
  static constexpr int kWarps = kTileM / kRowsPerWarp;
  static constexpr int kThreads = 32 * kWarps;

  // Touched columns: elements of a warp, and the bytes of its listed rows of K and V.
  static constexpr int kFoldSlice = kHeadDim / kWarps;
  static constexpr int kFoldStageBytes = 2 * kFoldRows * 2 * kFoldSlice;

  // On a multiprocessor. Two fit the shared memory of sm_90, if their registers do: one builds
  // columns while the other multiplies. The 164 KiB of sm_80 hold one of 128 rows.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  static constexpr int kMinBlocks = 2;
#else
  static constexpr int kMinBlocks = 1;
#endif
};

// What the listed rows do to the sums of their column.
enum class RowSign : std::uint8_t { kNone, kSubtract, kAdd };

template <class Traits>
struct SharedFold {
  alignas(128) unsigned char q[tile_bytes(Traits::kTileM, Traits::kHeadDim)];
  alignas(128) unsigned char k[tile_bytes(kFoldColumns, Traits::kHeadDim)];
  alignas(128) unsigned char v[tile_bytes(kFoldColumns, Traits::kHeadDim)];
  alignas(128) unsigned char variance[tile_bytes(kFoldColumns, Traits::kHeadDim)];
  alignas(128) unsigned char stages[Traits::kWarps][kFoldStages * Traits::kFoldStageBytes];
  RowPair row_states[Traits::kRowTiles * Traits::kThreads];
  std::int32_t row_index[Traits::kTileM];
  float bias[kFoldColumns];  // raw logit that is added: log2(n) / scale_log2, -inf for no column
  std::int32_t remaining[kFoldColumns];  // keys of the column
  union {
    SlotBits visited;
    // kCentroid, which needs no bits: sums of K and V by warps.
    alignas(16) float partial[Traits::kWarps][2][Traits::kHeadDim];
  };
  // Rows that make the columns that no copy brings, by groups of columns.
  alignas(16) std::int32_t row_token[kFoldGroups * kFoldListRows];  // -1: a row of zeros
  alignas(4) std::uint8_t row_column[kFoldGroups * kFoldListRows];  // in the group
  std::int32_t num_rows[kFoldGroups];
  RowSign sign[kFoldColumns];
  // Of the tile; in shared memory, because registers are short.
  std::int32_t plan_tile;
  std::int32_t fold_end;
  float spread_factor;  // scale^2, undoing kSquareScale
  float inverse_scale;
  SlotRowsDevice<typename Traits::Element, Traits::kHeadDim> rows;
  std::int64_t first_row_of_set;  // of the block sums
  std::int32_t num_columns;
  std::int32_t num_visited;
};

// A block takes 1 KiB more than it asks for, of the 228 KiB of sm_90.
static_assert(2 * (sizeof(SharedFold<TraitsFold<Bf16, 128, 128>>) + 1024) <= 228 * 1024);

}  // namespace s2o::device
