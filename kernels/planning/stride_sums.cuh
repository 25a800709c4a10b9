// Antidiagonal sums of queries and keys as one product, and the sums of their exponentials
// (xattention_args.h). A block of threads holds one tile of reduced rows and walks a chunk of
// reduced columns; the pipeline of copies runs on from one step of columns to the next, so that
// the exponentials of a step hide the first copies of the next.
#pragma once

#include "kernels/device/cp_async.cuh"
#include "kernels/device/layout.cuh"
#include "kernels/device/mma_sm80.cuh"
#include "kernels/planning/platform_planning.cuh"
#include "kernels/planning/xattention_args.h"

namespace s2o::device {

inline constexpr int kStrideThreads = 256;
inline constexpr int kStrideStages = 3;             // 144 KiB: every device has them
inline constexpr int kStrideDepth = kPanelColumns;  // elements of a row and stage

struct SharedStride {
  struct alignas(1024) Stage {
    unsigned char q[kStrideRows * kPanelRowBytes];
    unsigned char k[kStrideColumns * kPanelRowBytes];
  } stage[kStrideStages];
};

template <class Element, int kHeadDim>
class StrideSums {
 public:
  S2O_DEVICE explicit StrideSums(const StrideSumArgs& args)
      : args_(args), s_(*reinterpret_cast<SharedStride*>(shared_memory())) {
    // Blocks in flight share few tiles of rows, which they read once per step, and the chunks of
    // one KV head; long tiles first.
    const int num_tiles = args.end_tile - args.first_tile;
    int index = block_index();
    const int chunk = index % args.num_chunks;
    index /= args.num_chunks;
    const int head_in_group = index % args.group_size;
    index /= args.group_size;
    tile_ = args.end_tile - 1 - index % num_tiles;
    kv_head_ = index / num_tiles;
    head_ = kv_head_ * args.group_size + head_in_group;
    first_row_ = tile_ * kStrideRows;
    first_column_ = chunk * kStrideChunkSteps * kStrideColumns;
    const int columns = min_of(first_row_ + kStrideRows, args.num_rows) - first_column_;
    num_steps_ = columns <= 0 ? 0 : min_of(ceil_div(columns, kStrideColumns), kStrideChunkSteps);
  }

  S2O_DEVICE void run() {
    if (num_steps_ == 0) return;
    const int parts = args_.stride * kPanels;
    const int total = num_steps_ * parts;
#pragma unroll
    for (int stage = 0; stage < kStrideStages - 1; ++stage) {
      load(stage);
      copy_async_commit();
    }
    int stage = 0;
    int part = 0;
    int step = 0;
    clear();
    for (int i = 0; i < total; ++i) {
      copy_async_wait<kStrideStages - 2>();
      sync_block(kStrideThreads);  // the stage is there, and nobody reads the one filled next
      load((stage + kStrideStages - 1) % kStrideStages);
      copy_async_commit();
      multiply(stage);
      stage = (stage + 1) % kStrideStages;
      if (++part == parts) {
        finish(first_column_ + step * kStrideColumns);
        clear();
        part = 0;
        ++step;
      }
    }
    copy_async_wait<0>();
  }

 private:
  static constexpr int kPanels = kHeadDim / kStrideDepth;
  // Eight warps: two halves of the rows times four quarters of the columns, 64 x 64 each.
  static constexpr int kRowTiles = 4;
  static constexpr int kColumnTiles = 8;

  // Next part of the next step into a stage; nothing beyond the last.
  S2O_DEVICE void load(int stage) {
    if (load_step_ == num_steps_) return;
    constexpr int kRowsPerPass = kStrideThreads / 8;
    const int chunk = thread_index() % 8;
    const int row = thread_index() / 8;
    const std::uint32_t q_target = shared_address(s_.stage[stage].q);
    const std::uint32_t k_target = shared_address(s_.stage[stage].k);
    const int u = load_part_ / kPanels;
    const std::int64_t column = load_part_ % kPanels * kStrideDepth + chunk * kChunkElements;
    const auto* const q =
        static_cast<const std::uint16_t*>(args_.q) + head_ * args_.seqlen * kHeadDim + column;
    const auto* const k =
        static_cast<const std::uint16_t*>(args_.k) + kv_head_ * args_.seqlen * kHeadDim + column;
    std::int64_t token =
        static_cast<std::int64_t>(first_row_ + row) * args_.stride + args_.stride - 1 - u;
#pragma unroll
    for (int r = 0; r < kStrideRows; r += kRowsPerPass) {
      const bool exists = token < args_.seqlen;
      copy_async_16(
          q_target + static_cast<std::uint32_t>(swizzled_chunk_offset(kStrideRows, row + r, chunk)),
          q + (exists ? token : 0) * kHeadDim, exists);
      token += kRowsPerPass * args_.stride;
    }
    token = static_cast<std::int64_t>(first_column_ + load_step_ * kStrideColumns + row) *
                args_.stride +
            u;
#pragma unroll
    for (int r = 0; r < kStrideColumns; r += kRowsPerPass) {
      const bool exists = token < args_.seqlen;
      copy_async_16(k_target + static_cast<std::uint32_t>(
                                   swizzled_chunk_offset(kStrideColumns, row + r, chunk)),
                    k + (exists ? token : 0) * kHeadDim, exists);
      token += kRowsPerPass * args_.stride;
    }
    if (++load_part_ == args_.stride * kPanels) {
      load_part_ = 0;
      ++load_step_;
    }
  }

  S2O_DEVICE void clear() {
#pragma unroll
    for (int t = 0; t < kRowTiles; ++t) {
#pragma unroll
      for (int n = 0; n < kColumnTiles; ++n) {
#pragma unroll
        for (int e = 0; e < 4; ++e) sum_[t][n][e] = 0.0f;
      }
    }
  }

  S2O_DEVICE void multiply(int stage) {
    const auto lane = static_cast<unsigned>(lane_index());
    const MatrixPosition a_source = ldmatrix_a_source(lane);
    const MatrixPosition b_source = ldmatrix_b_source(lane);
    const std::uint32_t q_lane = swizzled_lane_address(shared_address(s_.stage[stage].q),
                                                       warp_row() + a_source.row, a_source.column);
    const std::uint32_t k_lane = swizzled_lane_address(
        shared_address(s_.stage[stage].k), warp_column() + b_source.row, b_source.column);
#pragma unroll
    for (int step = 0; step < kStrideDepth / 16; ++step) {
      std::uint32_t a[kRowTiles][4];
#pragma unroll
      for (int t = 0; t < kRowTiles; ++t) {
        load_matrix_x4(a[t], swizzled_step_address(q_lane, kStrideRows, t * 16, 2 * step));
      }
#pragma unroll
      for (int n = 0; n < kColumnTiles; n += 2) {
        std::uint32_t b[4];
        load_matrix_x4(b, swizzled_step_address(k_lane, kStrideColumns, n * 8, 2 * step));
#pragma unroll
        for (int t = 0; t < kRowTiles; ++t) {
          multiply_accumulate<Element>(sum_[t][n], a[t], b[0], b[1]);
          multiply_accumulate<Element>(sum_[t][n + 1], a[t], b[2], b[3]);
        }
      }
    }
  }
  S2O_DEVICE static int warp_row() { return warp_index() % 2 * 64; }
  S2O_DEVICE static int warp_column() { return warp_index() / 2 * kStrideGroup; }

  // The warp's group of columns of this step.
  S2O_DEVICE void finish(int step_column) {
    const int column = step_column + warp_column();
    if (column >= first_row_ + kStrideRows) return;
    const std::int64_t group = head_ * stride_groups(args_.first_tile, args_.end_tile) +
                               stride_groups(args_.first_tile, tile_) + column / kStrideGroup;
    const bool whole = column + kStrideGroup <= first_row_ + warp_row();
#pragma unroll
    for (int r = 0; r < 2 * kRowTiles; ++r) {
      const int row = warp_row() + r / 2 * 16 + lane_index() / 4 + r % 2 * 8;
      float largest = kNegativeInfinity;
#pragma unroll
      for (int n = 0; n < kColumnTiles; ++n) {
        float* const x = sum_[r / 2][n] + r % 2 * 2;
        const std::uint32_t rounded = pack_pair<Element>(x[0], x[1]);
        x[0] = unpack_low<Element>(rounded) * args_.scale_log2;
        x[1] = unpack_high<Element>(rounded) * args_.scale_log2;
        if (!whole) {
          const int first = column + n * 8 + lane_index() % 4 * 2;
          x[0] = first <= first_row_ + row ? x[0] : kNegativeInfinity;
          x[1] = first + 1 <= first_row_ + row ? x[1] : kNegativeInfinity;
        }
        largest = max_of(largest, max_of(x[0], x[1]));
      }
      largest = max_of(quad_max(largest), kLeast);
      float part[kColumnTiles];
#pragma unroll
      for (int n = 0; n < kColumnTiles; ++n) {
        const float* const x = sum_[r / 2][n] + r % 2 * 2;
        part[n] = exp2_fast(x[0] - largest) + exp2_fast(x[1] - largest);
      }
      const std::int64_t place = group * kStrideRows + row;
      if (lane_index() % 4 == 0) args_.references[place] = largest;
      store(place, part);
    }
  }
  // A row whose columns are all hidden has this reference and no mass.
  static constexpr float kLeast = -1e30f;

  S2O_DEVICE void store(std::int64_t place, const float (&part)[kColumnTiles]) const {
    const int quad_lane = lane_index() % 4;
    if (args_.columns_per_block == 8) {
      args_.sums[place * 8 + quad_lane] = transposed_sum(part[0], part[1], part[2], part[3]);
      args_.sums[place * 8 + 4 + quad_lane] = transposed_sum(part[4], part[5], part[6], part[7]);
    } else if (args_.columns_per_block == 16) {
      args_.sums[place * 4 + quad_lane] = transposed_sum(part[0] + part[1], part[2] + part[3],
                                                         part[4] + part[5], part[6] + part[7]);
    } else {
      const float low = quad_sum(part[0] + part[1] + part[2] + part[3]);
      const float high = quad_sum(part[4] + part[5] + part[6] + part[7]);
      if (quad_lane < 2) args_.sums[place * 2 + quad_lane] = quad_lane == 0 ? low : high;
    }
  }
  S2O_DEVICE static float transposed_sum(float x0, float x1, float x2, float x3) {
    const float x[4] = {x0, x1, x2, x3};
    return transposed_quad_sum(x);
  }

  const StrideSumArgs& args_;
  SharedStride& s_;
  int tile_;
  int kv_head_;
  int head_;
  int first_row_;
  int first_column_;
  int num_steps_;
  int load_step_ = 0;
  int load_part_ = 0;
  float sum_[kRowTiles][kColumnTiles][4];
};

}  // namespace s2o::device
