// Rows of tiles: which rows of q a tile holds, and row-wise copies into swizzled tiles.
#pragma once

#include <cstdint>

#include "kernels/attention/kernel_args.h"
#include "kernels/attention/steps.cuh"
#include "kernels/device/cp_async.cuh"
#include "kernels/device/layout.cuh"

namespace s2o::device {

// Query rows of one tile (plan_view.h): which rows of q they are and where in the sequence.
struct TileRowMap {
  std::int32_t index;     // head * seqlen + position, or -1 beyond the last row
  std::int32_t position;  // original position, 0 beyond the last row
};
// Its position alone, in case memory must be asked for it, and the rest once that is known.
S2O_DEVICE std::int32_t tile_row_position(const AttentionKernelArgs& args, int plan_head, int tile,
                                          int tile_m, int row) {
  const std::int64_t slot = static_cast<std::int64_t>(tile) * tile_m + row;
  if (slot >= args.seqlen * args.pack) return 0;
  if (args.pack > 1) return static_cast<std::int32_t>(slot / args.pack);
  if (args.pass.query_order == nullptr) return static_cast<std::int32_t>(slot);
  return load_global(args.pass.query_order + plan_head * args.seqlen + slot);
}
S2O_DEVICE TileRowMap tile_row_at(const AttentionKernelArgs& args, int plan_head, int tile,
                                  int tile_m, int row, std::int32_t position) {
  const std::int64_t slot = static_cast<std::int64_t>(tile) * tile_m + row;
  if (slot >= args.seqlen * args.pack) return {-1, 0};
  const int head =
      args.pack > 1 ? plan_head * args.pack + static_cast<int>(slot % args.pack) : plan_head;
  return {static_cast<std::int32_t>(head * args.seqlen + position), position};
}
S2O_DEVICE TileRowMap tile_row(const AttentionKernelArgs& args, int plan_head, int tile, int tile_m,
                               int row) {
  return tile_row_at(args, plan_head, tile, tile_m, row,
                     tile_row_position(args, plan_head, tile, tile_m, row));
}

S2O_DEVICE int rows_in_tile(const AttentionKernelArgs& args, int tile, int tile_m) {
  const std::int64_t left = args.seqlen * args.pack - static_cast<std::int64_t>(tile) * tile_m;
  return left < tile_m ? static_cast<int>(left) : tile_m;
}

// Lanes over the 16-byte chunks of a row: a power of two, of which head_dim 96 leaves some idle.
S2O_HOST_DEVICE constexpr int chunk_lanes(int head_dim) {
  int lanes = 1;
  while (lanes * kChunkElements < head_dim) lanes *= 2;
  return lanes;
}

// Copies kRows rows of kHeadDim elements into a swizzled tile; row r comes from row rows[r] of
// `base`, or is zero where rows[r] < 0. `thread` in [0, kThreads).
template <int kRows, int kHeadDim, int kThreads>
S2O_DEVICE void copy_rows_async(std::uint32_t tile, const void* base, const std::int32_t* rows,
                                int thread) {
  constexpr int kChunks = chunk_lanes(kHeadDim);
  constexpr int kRowsPerPass = kThreads / kChunks;
  static_assert(kThreads % kChunks == 0 && kRows % kRowsPerPass == 0);
  const int chunk = static_cast<int>(static_cast<unsigned>(thread) % kChunks);
  const int first_row = static_cast<int>(static_cast<unsigned>(thread) / kChunks);
  if (chunk >= kHeadDim / kChunkElements) return;
  const auto* source = static_cast<const unsigned char*>(base) + chunk * kChunkBytes;
#pragma unroll
  for (int pass = 0; pass < kRows / kRowsPerPass; ++pass) {
    const int row = first_row + pass * kRowsPerPass;
    const std::int32_t from = rows[row];
    const std::int64_t offset = static_cast<std::int64_t>(from < 0 ? 0 : from) * (kHeadDim * 2);
    copy_async_16(tile + static_cast<std::uint32_t>(swizzled_chunk_offset(kRows, row, chunk)),
                  source + offset, from >= 0);
  }
}

// Copies of whole rows by the warps of a block into a swizzled tile of kRows rows. A lane copies
// one 16-byte chunk of consecutive rows, so that it reads four indices at once, the swizzle of a
// row is a constant, and an address costs one multiply-add. kEager: indices of a whole batch are
// read before its first copy, and no register is held between batches for where a row goes.
template <int kRows, int kHeadDim, int kWarps, bool kEager = false>
struct RowCopier {
  static constexpr int kRowBytes = kHeadDim * 2;
  static constexpr int kChunks = chunk_lanes(kHeadDim);
  static constexpr bool kIdleLanes = kChunks * kChunkElements > kHeadDim;
  static constexpr int kRowsPerWarp = kRows / kWarps;
  static constexpr int kRowsPerLane = kRowsPerWarp * kChunks / 32;
  static constexpr int kBatch = kRowsPerLane < 8 ? kRowsPerLane : 8;
  static_assert(kRowsPerLane % 8 == 0 || kRowsPerLane == 4);

  int row;               // first row of the lane
  int chunk_offset;      // bytes into a row
  std::uint32_t target;  // panel of the chunk
  std::uint32_t place;   // of the chunk in row `row`

  S2O_DEVICE RowCopier(std::uint32_t tile, int thread) {
    const int chunk = lane_of(thread) % kChunks;
    row = warp_of(thread) * kRowsPerWarp + lane_of(thread) / kChunks * kRowsPerLane;
    chunk_offset = chunk * kChunkBytes;
    target = tile + static_cast<std::uint32_t>(chunk / 8 * kRows * kPanelRowBytes);
    place = static_cast<std::uint32_t>((chunk % 8) ^ (row % 8));
  }
  S2O_DEVICE std::uint32_t target_of(int batch, int i) const {
    return target + static_cast<std::uint32_t>((row + batch + i) * kPanelRowBytes) +
           (place ^ static_cast<std::uint32_t>(i)) * kChunkBytes;
  }
  // The same in two parts, of a batch and of a row in it: i rows on, its chunk swizzled by one
  // exclusive or, for tiles start at a multiple of a row and batches at one of their rows.
  S2O_DEVICE std::uint32_t target_of(int batch) const {
    return target + static_cast<std::uint32_t>((row + batch) * kPanelRowBytes) +
           place * kChunkBytes;
  }
  S2O_DEVICE static std::uint32_t target_in(std::uint32_t first, int i) {
    return (first ^ static_cast<std::uint32_t>(i * kChunkBytes)) +
           static_cast<std::uint32_t>(i * kPanelRowBytes);
  }
  S2O_DEVICE bool is_idle() const { return kIdleLanes && chunk_offset >= kRowBytes; }

  // Row r comes from row indices[r] of `base`; `indices` in shared memory, none negative.
  S2O_DEVICE void gather(const void* base, const std::int32_t* indices) const {
    if (is_idle()) return;
    const auto* const source = opaque(static_cast<const unsigned char*>(base) + chunk_offset);
#pragma unroll 1  // more rows at once would not fit the registers
    for (int batch = 0; batch < kRowsPerLane; batch += kBatch) {
      if constexpr (kEager) {
        copy_batch(batch, source, indices);
        continue;
      }
#pragma unroll
      for (int four = 0; four < kBatch; four += 4) {
        const Words4 from = load_shared_16(shared_address(indices + row + batch + four));
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          copy_async_16(target_of(batch, four + i),
                        source + static_cast<std::uint64_t>(from.word[i]) * kRowBytes);
        }
      }
    }
  }
  S2O_DEVICE void copy_batch(int batch, const unsigned char* source,
                             const std::int32_t* indices) const {
    const std::uint32_t first = target_of(batch);
    Words4 from[kBatch / 4];
#pragma unroll
    for (int four = 0; four < kBatch / 4; ++four) {
      from[four] = load_shared_16(shared_address(indices + row + batch + four * 4));
    }
#pragma unroll
    for (int i = 0; i < kBatch; ++i) {
      copy_async_16(target_in(first, i),
                    source + static_cast<std::uint64_t>(from[i / 4].word[i % 4]) * kRowBytes);
    }
  }
  // Row r comes from row r of `base`.
  S2O_DEVICE void copy(const void* base) const {
    if (is_idle()) return;
    const auto* const source =
        opaque(static_cast<const unsigned char*>(base) + chunk_offset + row * kRowBytes);
#pragma unroll
    for (int batch = 0; batch < kRowsPerLane; batch += kBatch) {
#pragma unroll
      for (int i = 0; i < kBatch; ++i) {
        copy_async_16(target_of(batch, i), source + (batch + i) * kRowBytes);
      }
    }
  }
};

// First row of the plan head's KV head.
template <int kHeadDim>
S2O_DEVICE const void* kv_head_rows(const AttentionKernelArgs& args, const void* tensor,
                                    int plan_head) {
  const std::int64_t kv_head = plan_head / args.plan_heads_per_kv_head;
  return static_cast<const std::uint16_t*>(tensor) + kv_head * args.seqlen * kHeadDim;
}

// Smallest position among the tile's rows; called by one whole warp.
S2O_DEVICE int smallest_position(const std::int32_t* positions, int num_rows) {
  int first = positions[0];
  for (int row = lane_index(); row < num_rows; row += 32) first = min_of(first, positions[row]);
  for (int mask = 16; mask > 0; mask /= 2) first = min_of(first, shuffle_xor(first, mask));
  return first;
}

// This thread's share of the number of plan steps of a tile. The PV skip exempts the last steps, so
// their number must be known beforehand.
S2O_DEVICE int plan_steps_of_thread(const AttentionKernelArgs& args, std::int32_t plan_tile,
                                    int num_threads) {
  const std::int64_t end = tile_items_end(args.pass, plan_tile);
  int steps = 0;
  for (std::int64_t i = load_global(args.pass.item_offsets + plan_tile) + thread_index(); i < end;
       i += num_threads) {
    steps += ceil_div(args.pass.items[i].count, args.block_n);
  }
  return steps;
}

}  // namespace s2o::device
