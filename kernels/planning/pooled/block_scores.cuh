// Scores of blocks of queries against blocks of keys (ops.h): a small product of matrices
// with the rounding of the original methods.
#pragma once

#include "kernels/device/cp_async.cuh"
#include "kernels/device/layout.cuh"
#include "kernels/device/mma_sm80.cuh"
#include "kernels/planning/launch.cuh"
#include "kernels/planning/pooled/ops.h"
#include "kernels/planning/shared/platform_planning.cuh"

namespace s2o::device {

inline constexpr int kBlockScoreThreads = 128;
inline constexpr int kBlockScoreTile = 64;  // rows and columns

template <int kHeadDim>
struct SharedBlockScores {
  alignas(128) unsigned char q[tile_bytes(kBlockScoreTile, kHeadDim)];
  alignas(128) unsigned char k[tile_bytes(kBlockScoreTile, kHeadDim)];
};

template <class Element, int kHeadDim>
class BlockScores {
 public:
  S2O_DEVICE explicit BlockScores(const BlockScoreArgs& args)
      : args_(args), s_(*reinterpret_cast<SharedBlockScores<kHeadDim>*>(shared_memory())) {
    const int column_tiles = ceil_div(args.num_kv_blocks, kBlockScoreTile);
    const int row_tiles = ceil_div(args.num_rows, kBlockScoreTile);
    first_column_ = block_index() % column_tiles * kBlockScoreTile;
    const int tile = block_index() / column_tiles;
    first_row_ = args.first_row + tile % row_tiles * kBlockScoreTile;
    head_ = tile / row_tiles;
  }

  S2O_DEVICE void run() {
    const int end_row = min_of(args_.first_row + args_.num_rows, first_row_ + kBlockScoreTile);
    const std::int64_t end_token = static_cast<std::int64_t>(end_row) * args_.block_m;
    if (static_cast<std::int64_t>(first_column_) * args_.block_n >= end_token) return;
    load(shared_address(s_.q), args_.q, head_, args_.num_q_blocks, first_row_, end_row);
    load(shared_address(s_.k), args_.k, head_ / args_.heads_per_k, args_.num_kv_blocks,
         first_column_, args_.num_kv_blocks);
    copy_async_commit();
    copy_async_wait<0>();
    sync_block(kBlockScoreThreads);
    multiply(end_row);
  }

 private:
  static constexpr int kChunks = kHeadDim / kChunkElements;
  static constexpr int kColumnTiles = kBlockScoreTile / 8;

  S2O_DEVICE static void load(std::uint32_t target, const void* source, int head, int rows_of_head,
                              int first, int end) {
    const int chunk = thread_index() % kChunks;
    const auto* base = static_cast<const std::uint16_t*>(source) +
                       static_cast<std::int64_t>(head) * rows_of_head * kHeadDim +
                       chunk * kChunkElements;
#pragma unroll 4
    for (int row = thread_index() / kChunks; row < kBlockScoreTile;
         row += kBlockScoreThreads / kChunks) {
      const bool exists = first + row < end;
      copy_async_16(
          target + static_cast<std::uint32_t>(swizzled_chunk_offset(kBlockScoreTile, row, chunk)),
          base + static_cast<std::int64_t>(exists ? first + row : first) * kHeadDim, exists);
    }
  }

  S2O_DEVICE void multiply(int end_row) const {
    const auto lane = static_cast<unsigned>(lane_index());
    const MatrixPosition a_source = ldmatrix_a_source(lane);
    const MatrixPosition b_source = ldmatrix_b_source(lane);
    const std::uint32_t q_lane = swizzled_lane_address(
        shared_address(s_.q), warp_index() * 16 + a_source.row, a_source.column);
    const std::uint32_t k_lane =
        swizzled_lane_address(shared_address(s_.k), b_source.row, b_source.column);
    float score[kColumnTiles][4];
#pragma unroll
    for (int n = 0; n < kColumnTiles; ++n) {
#pragma unroll
      for (int e = 0; e < 4; ++e) score[n][e] = 0.0f;
    }
#pragma unroll
    for (int step = 0; step < kHeadDim / 16; ++step) {
      std::uint32_t a[4];
      load_matrix_x4(a, swizzled_step_address(q_lane, kBlockScoreTile, 0, 2 * step));
#pragma unroll
      for (int n = 0; n < kColumnTiles; n += 2) {
        std::uint32_t b[4];
        load_matrix_x4(b, swizzled_step_address(k_lane, kBlockScoreTile, n * 8, 2 * step));
        multiply_accumulate<Element>(score[n], a, b[0], b[1]);
        multiply_accumulate<Element>(score[n + 1], a, b[2], b[3]);
      }
    }
    const MatrixPosition place = accumulator_position(lane, 0);
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int row = first_row_ + warp_index() * 16 + place.row + 8 * i;
      if (row >= end_row) continue;
      auto* const target = reinterpret_cast<std::uint32_t*>(
          args_.scores +
          (static_cast<std::int64_t>(head_) * args_.num_rows + row - args_.first_row) *
              args_.row_stride +
          first_column_ + place.column);
#pragma unroll
      for (int n = 0; n < kColumnTiles; ++n) {
        const std::uint32_t raw = pack_pair<Element>(score[n][2 * i], score[n][2 * i + 1]);
        target[n * 4] = pack_pair<Element>(unpack_low<Element>(raw) * args_.scale,
                                           unpack_high<Element>(raw) * args_.scale);
      }
    }
  }

  const BlockScoreArgs& args_;
  SharedBlockScores<kHeadDim>& s_;
  int first_column_;
  int first_row_;
  int head_;
};

template <class Element, int kHeadDim>
struct BlockScoresKernel {
  static constexpr const char* kName = "planning: block scores";
  static constexpr int kThreads = kBlockScoreThreads;
  static constexpr int kMinBlocks = 0;
  static Grid grid(const BlockScoreArgs& args) {
    return {.blocks = std::int64_t{args.num_heads} * ceil_div(args.num_rows, kBlockScoreTile) *
                      ceil_div(args.num_kv_blocks, kBlockScoreTile),
            .shared_bytes = sizeof(SharedBlockScores<kHeadDim>)};
  }
  S2O_DEVICE static void run(const BlockScoreArgs& args) {
    BlockScores<Element, kHeadDim>(args).run();
  }
};

}  // namespace s2o::device
