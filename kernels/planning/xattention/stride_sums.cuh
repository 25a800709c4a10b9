// Antidiagonal sums of queries and keys as one product, and the sums of their exponentials
// (ops.h). A block of threads holds one tile of reduced rows and walks a chunk of
// reduced columns; the pipeline of copies runs on from one step of columns to the next, so that
// the exponentials of a step hide the first copies of the next.
#pragma once

#include "kernels/device/cp_async.cuh"
#include "kernels/device/layout.cuh"
#include "kernels/device/mma_sm80.cuh"
#include "kernels/planning/launch.cuh"
#include "kernels/planning/xattention/stride_tile.cuh"

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
  S2O_DEVICE explicit StrideSums(const XAttentionSumArgs& args)
      : args_(args), s_(*reinterpret_cast<SharedStride*>(shared_memory())), tile_(args) {}

  S2O_DEVICE void run() {
    if (tile_.num_steps == 0) return;
    const int parts = args_.stride * kPanels;
    const int total = tile_.num_steps * parts;
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
        finish(tile_.first_column + step * kStrideColumns);
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
  static constexpr int kColumnTiles = kStrideGroupTiles;

  // Next part of the next step into a stage; nothing beyond the last.
  S2O_DEVICE void load(int stage) {
    if (load_step_ == tile_.num_steps) return;
    constexpr int kRowsPerPass = kStrideThreads / 8;
    const int chunk = thread_index() % 8;
    const int row = thread_index() / 8;
    const std::uint32_t q_target = shared_address(s_.stage[stage].q);
    const std::uint32_t k_target = shared_address(s_.stage[stage].k);
    const int u = load_part_ / kPanels;
    const std::int64_t column = load_part_ % kPanels * kStrideDepth + chunk * kChunkElements;
    const auto* const q =
        static_cast<const std::uint16_t*>(args_.q) + tile_.head * args_.seqlen * kHeadDim + column;
    const auto* const k = static_cast<const std::uint16_t*>(args_.k) +
                          tile_.kv_head * args_.seqlen * kHeadDim + column;
    std::int64_t token =
        static_cast<std::int64_t>(tile_.first_row + row) * args_.stride + args_.stride - 1 - u;
#pragma unroll
    for (int r = 0; r < kStrideRows; r += kRowsPerPass) {
      const bool exists = token < args_.seqlen;
      copy_async_16(
          q_target + static_cast<std::uint32_t>(swizzled_chunk_offset(kStrideRows, row + r, chunk)),
          q + (exists ? token : 0) * kHeadDim, exists);
      token += kRowsPerPass * args_.stride;
    }
    token = static_cast<std::int64_t>(tile_.first_column + load_step_ * kStrideColumns + row) *
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
    if (column >= tile_.first_row + kStrideRows) return;
    const bool whole = column + kStrideGroup <= tile_.first_row + warp_row();
    dispatch_columns(args_.columns_per_block, [&]<int kColumnsPerBlock>() {
#pragma unroll
      for (int r = 0; r < 2 * kRowTiles; ++r) {
        const int row = warp_row() + r / 2 * 16 + lane_index() / 4 + r % 2 * 8;
        finish_stride_row<Element, kColumnsPerBlock>(
            args_, tile_, column, row, whole,
            [&](int n, int c) { return sum_[r / 2][n][r % 2 * 2 + c]; });
      }
    });
  }

  const XAttentionSumArgs& args_;
  SharedStride& s_;
  const StrideTile tile_;
  int load_step_ = 0;
  int load_part_ = 0;
  float sum_[kRowTiles][kColumnTiles][4];
};

template <class Element, int kHeadDim>
struct StrideSumsKernel {
  static constexpr const char* kName = "planning: antidiagonal sums";
  static constexpr int kThreads = kStrideThreads;
  static constexpr int kMinBlocks = 1;
  static Grid grid(const XAttentionSumArgs& args) {
    return {.blocks = stride_sum_blocks(args), .shared_bytes = sizeof(SharedStride)};
  }
  S2O_DEVICE static void run(const XAttentionSumArgs& args) {
    StrideSums<Element, kHeadDim>(args).run();
  }
};

}  // namespace s2o::device
