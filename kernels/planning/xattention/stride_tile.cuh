// What the two products of antidiagonal sums share (stride_sums.cuh, stride_sums_sm90.cuh): which
// part of the matrix a block of threads computes, and the sums of exponentials of a group of
// columns.
#pragma once

#include "kernels/planning/shared/platform_planning.cuh"
#include "kernels/planning/xattention/ops.h"

namespace s2o::device {

inline std::int64_t stride_sum_blocks(const XAttentionSumArgs& args) {
  return std::int64_t{args.num_q_heads} * (args.end_tile - args.first_tile) * args.num_chunks;
}

// A tile of reduced rows and a chunk of reduced columns.
struct StrideTile {
  int tile;
  int kv_head;
  int head;
  int first_row;
  int first_column;
  int num_steps;  // of kStrideColumns columns; 0: all columns lie beyond the diagonal

  // Blocks in flight share few tiles of rows, which they read once per step, and the chunks of one
  // KV head; long tiles first.
  S2O_DEVICE explicit StrideTile(const XAttentionSumArgs& args) {
    const int num_tiles = args.end_tile - args.first_tile;
    int index = block_index();
    const int chunk = index % args.num_chunks;
    index /= args.num_chunks;
    const int head_in_group = index % args.group_size;
    index /= args.group_size;
    tile = args.end_tile - 1 - index % num_tiles;
    kv_head = index / num_tiles;
    head = kv_head * args.group_size + head_in_group;
    first_row = tile * kStrideRows;
    first_column = chunk * kStrideChunkSteps * kStrideColumns;
    const int columns = min_of(first_row + kStrideRows, args.num_rows) - first_column;
    num_steps = columns <= 0 ? 0 : min_of(ceil_div(columns, kStrideColumns), kStrideChunkSteps);
  }

  S2O_DEVICE std::int64_t group_of(const XAttentionSumArgs& args, int column) const {
    return head * stride_groups(args.first_tile, args.end_tile) +
           stride_groups(args.first_tile, tile) + column / kStrideGroup;
  }
};

inline constexpr int kStrideGroupTiles = kStrideGroup / 8;

S2O_DEVICE float stride_quad_sum(float x0, float x1, float x2, float x3) {
  const float x[4] = {x0, x1, x2, x3};
  return transposed_quad_sum(x);
}

template <int kColumnsPerBlock>
S2O_DEVICE void store_stride_sums(float* sums, std::int64_t place,
                                  const float (&part)[kStrideGroupTiles]) {
  static_assert(kColumnsPerBlock == 8 || kColumnsPerBlock == 16 || kColumnsPerBlock == 32);
  const int quad_lane = lane_index() % 4;
  if constexpr (kColumnsPerBlock == 8) {
    sums[place * 8 + quad_lane] = stride_quad_sum(part[0], part[1], part[2], part[3]);
    sums[place * 8 + 4 + quad_lane] = stride_quad_sum(part[4], part[5], part[6], part[7]);
  } else if constexpr (kColumnsPerBlock == 16) {
    sums[place * 4 + quad_lane] =
        stride_quad_sum(part[0] + part[1], part[2] + part[3], part[4] + part[5], part[6] + part[7]);
  } else {
    const float low = quad_sum(part[0] + part[1] + part[2] + part[3]);
    const float high = quad_sum(part[4] + part[5] + part[6] + part[7]);
    if (quad_lane < 2) sums[place * 2 + quad_lane] = quad_lane == 0 ? low : high;
  }
}

// body.template operator()<kColumnsPerBlock>() for the one of the arguments: 8, 16 or 32.
#pragma nv_exec_check_disable
template <class Body>
S2O_HOST_DEVICE void dispatch_columns(int columns_per_block, const Body& body) {
  if (columns_per_block == 8) {
    body.template operator()<8>();
  } else if (columns_per_block == 16) {
    body.template operator()<16>();
  } else {
    body.template operator()<32>();
  }
}

// One row of a group of columns, which lie over the quad of lanes as in an accumulator fragment:
// product(n, c) is the sum of column 8 n + 2 (lane % 4) + c. `row` is of the tile; `whole`: no
// column of the group lies beyond the diagonal, for any row of the warp.
template <class Element, int kColumnsPerBlock, class Product>
S2O_DEVICE void finish_stride_row(const XAttentionSumArgs& args, const StrideTile& tile, int column,
                                  int row, bool whole, const Product& product) {
  constexpr float kLeast = -1e30f;  // reference of a row whose columns are all hidden: no mass
  float x[2 * kStrideGroupTiles];
  float largest = kLeast;
#pragma unroll
  for (int n = 0; n < kStrideGroupTiles; ++n) {
    const std::uint32_t rounded = pack_pair<Element>(product(n, 0), product(n, 1));
    x[2 * n] = unpack_low<Element>(rounded);
    x[2 * n + 1] = unpack_high<Element>(rounded);
    if (!whole) {
      const int first = column + n * 8 + lane_index() % 4 * 2;
      x[2 * n] = first <= tile.first_row + row ? x[2 * n] : kNegativeInfinity;
      x[2 * n + 1] = first + 1 <= tile.first_row + row ? x[2 * n + 1] : kNegativeInfinity;
    }
    largest = max_of(largest, max_of(x[2 * n], x[2 * n + 1]));
  }
  const float reference = quad_max(largest) * args.scale_log2;
  float part[kStrideGroupTiles];
#pragma unroll
  for (int n = 0; n < kStrideGroupTiles; ++n) {
    part[n] = exp2_fast(fused(x[2 * n], args.scale_log2, -reference)) +
              exp2_fast(fused(x[2 * n + 1], args.scale_log2, -reference));
  }
  const std::int64_t place = tile.group_of(args, column) * kStrideRows + row;
  if (lane_index() % 4 == 0) args.references[place] = reference;
  store_stride_sums<kColumnsPerBlock>(args.sums, place, part);
}

}  // namespace s2o::device
