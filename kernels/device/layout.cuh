// Where elements live: swizzled tiles in shared memory and matrix fragments in registers. Pure
// arithmetic, usable on the host; kernels/tests/layout_test.cpp checks it against the PTX ISA.
//
// Tile of [rows, head_dim] 16-bit elements: panels of 64 columns; in a panel a row is 128 bytes =
// 8 chunks of 16 bytes, and chunk c of row r is stored at place c ^ (r % 8). This is the pattern
// of 128-byte-swizzled tensor maps and warpgroup descriptors when the tile starts at a multiple of
// 1024 bytes, and it makes both ldmatrix (8 rows, one chunk column) and row-wise 16-byte stores
// free of bank conflicts.
#pragma once

#include <cstdint>

#include "kernels/device/platform.cuh"

namespace s2o::device {

inline constexpr int kPanelColumns = 64;
inline constexpr int kPanelRowBytes = 128;
inline constexpr int kChunkBytes = 16;
inline constexpr int kChunkElements = 8;

S2O_HOST_DEVICE constexpr int tile_bytes(int rows, int head_dim) { return rows * head_dim * 2; }

// Byte offset of 16-byte chunk `chunk` (columns [8 chunk, 8 chunk + 8)) of row `row`.
S2O_HOST_DEVICE constexpr int swizzled_chunk_offset(int num_rows, int row, int chunk) {
  const int panel = chunk / 8;
  return panel * num_rows * kPanelRowBytes + row * kPanelRowBytes +
         ((chunk % 8) ^ (row % 8)) * kChunkBytes;
}

// The same address in two parts, so that unrolled loops need one register a thread and immediates:
// `swizzled_lane_address` of a row and the chunk bit that depends on the lane (0 or 1), then
// `swizzled_step_address` for the even chunk and the multiple of 8 rows that do not.
// NOTE: `tile_address` must be a multiple of 128.
S2O_HOST_DEVICE constexpr std::uint32_t swizzled_lane_address(std::uint32_t tile_address, int row,
                                                              int chunk_bit) {
  return tile_address +
         static_cast<std::uint32_t>(row * kPanelRowBytes + (chunk_bit ^ (row % 8)) * kChunkBytes);
}
S2O_HOST_DEVICE constexpr std::uint32_t swizzled_step_address(std::uint32_t lane_address,
                                                              int num_rows, int added_rows,
                                                              int even_chunk) {
  return (lane_address ^ static_cast<std::uint32_t>(even_chunk % 8 * kChunkBytes)) +
         static_cast<std::uint32_t>(even_chunk / 8 * num_rows * kPanelRowBytes +
                                    added_rows * kPanelRowBytes);
}

struct MatrixPosition {
  int row;
  int column;
};

// mma.m16n8k16 and wgmma: element `reg` (0..3) of the accumulator of an 8-column tile held by
// `lane`, relative to the warp's 16 rows.
S2O_HOST_DEVICE constexpr MatrixPosition accumulator_position(unsigned lane, unsigned reg) {
  return {static_cast<int>(lane / 4 + 8 * (reg / 2)), static_cast<int>(2 * (lane % 4) + reg % 2)};
}

// Row and 16-byte chunk that `lane` addresses in ldmatrix.x4 when loading
//  - the 16x16 A operand (rows x k): registers a0..a3;
S2O_HOST_DEVICE constexpr MatrixPosition ldmatrix_a_source(unsigned lane) {
  return {static_cast<int>(lane % 8 + 8 * ((lane / 8) % 2)), static_cast<int>(lane / 16)};
}
//  - two 8-column B operands from rows of keys (non-transposed: k runs along the row);
S2O_HOST_DEVICE constexpr MatrixPosition ldmatrix_b_source(unsigned lane) {
  return {static_cast<int>(lane % 8 + 8 * (lane / 16)), static_cast<int>((lane / 8) % 2)};
}
//  - two 8-column B operands from rows of values (transposed: k runs down the rows).
S2O_HOST_DEVICE constexpr MatrixPosition ldmatrix_b_transposed_source(unsigned lane) {
  return {static_cast<int>(lane % 8 + 8 * ((lane / 8) % 2)), static_cast<int>(lane / 16)};
}

// Warpgroup matrix descriptor of a 128-byte-swizzled tile. `address` is in shared memory, a
// multiple of 16. K-major operands (Q, K: the contracted dimension along the row) ignore
// `leading_bytes`; for MN-major operands (V) it is the distance between panels of 64 columns.
// `stride_bytes` is the distance between groups of 8 rows: 1024 in our tiles.
S2O_HOST_DEVICE constexpr std::uint64_t warpgroup_descriptor(std::uint32_t address,
                                                             std::uint32_t leading_bytes,
                                                             std::uint32_t stride_bytes) {
  constexpr std::uint64_t kSwizzle128Bytes = 1;
  return static_cast<std::uint64_t>((address & 0x3ffffu) >> 4) |
         static_cast<std::uint64_t>((leading_bytes & 0x3ffffu) >> 4) << 16 |
         static_cast<std::uint64_t>((stride_bytes & 0x3ffffu) >> 4) << 32 | kSwizzle128Bytes << 62;
}
// The descriptor `bytes` further: the low word moves through the tile, the high word is the same
// everywhere.
S2O_HOST_DEVICE constexpr std::uint64_t descriptor_at(std::uint64_t first, int bytes) {
  return (first & 0xffffffff00000000ull) |
         (static_cast<std::uint32_t>(first) + static_cast<std::uint32_t>(bytes / 16));
}

}  // namespace s2o::device
