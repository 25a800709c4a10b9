// Estimated normalisers of all queries (cluster_ops.h): a block of threads holds kLseRows queries
// of a head in registers and walks the moments of its causal blocks of keys, kLseColumns at a time.
// Two products, q . mean and q^2 . variance, whose logits never leave the registers.
#pragma once

#include "kernels/device/cp_async.cuh"
#include "kernels/device/layout.cuh"
#include "kernels/device/mma_sm80.cuh"
#include "kernels/planning/launch.cuh"
#include "kernels/planning/s2o/lse_rows.cuh"

namespace s2o::device {

inline constexpr int kLseThreads = 128;
inline constexpr int kLseRows = kMomentBlock;  // so that one block of keys is partly causal
inline constexpr int kLseColumns = 32;         // blocks of keys of a step

template <int kHeadDim>
struct SharedLse {
  alignas(128) unsigned char q[tile_bytes(kLseRows, kHeadDim)];
  alignas(128) unsigned char moments[2][2][tile_bytes(kLseColumns, kHeadDim)];  // mean, variance
};

template <class Element, int kHeadDim>
class EstimateLse {
 public:
  S2O_DEVICE explicit EstimateLse(const LseArgs& args)
      : args_(args), s_(*reinterpret_cast<SharedLse<kHeadDim>*>(shared_memory())) {
    // Long rows first; heads of a group next to each other read the same moments.
    block_ = args.num_blocks - 1 - block_index() / args.num_q_heads;
    head_ = block_index() % args.num_q_heads;
  }

  S2O_DEVICE void run() {
    load_queries();
    load_moments(0);
    copy_async_commit();
    const int steps = ceil_div(block_ + 1, kLseColumns);
    for (int step = 0; step < steps; ++step) {
      copy_async_wait<0>();
      sync_block(kLseThreads);  // the step is there, and nobody reads the buffer filled next
      if (step + 1 < steps) load_moments(step + 1);
      copy_async_commit();
      if (step == 0) hold_queries();
#pragma unroll 1
      for (int column = 0; column < kLseColumns; column += kColumns) {
        step + 1 < steps ? add_columns<false>(step, column) : add_columns<true>(step, column);
      }
    }
    write();
  }

 private:
  static constexpr int kChunks = kHeadDim / kChunkElements;
  static constexpr int kRowTiles = kLseRows / (kLseThreads / 32) / 16;
  static constexpr int kColumns = 16;  // at once: more would not leave registers for the queries
  static constexpr int kColumnTiles = kColumns / 8;

  S2O_DEVICE void load_queries() const {
    const std::int64_t first = static_cast<std::int64_t>(block_) * kLseRows;
    const int chunk = thread_index() % kChunks;
#pragma unroll 4
    for (int row = thread_index() / kChunks; row < kLseRows; row += kLseThreads / kChunks) {
      const bool exists = first + row < args_.seqlen;
      copy_async_16(shared_address(s_.q) +
                        static_cast<std::uint32_t>(swizzled_chunk_offset(kLseRows, row, chunk)),
                    static_cast<const std::uint16_t*>(args_.q) +
                        (head_ * args_.seqlen + first + (exists ? row : 0)) * kHeadDim +
                        chunk * kChunkElements,
                    exists);
    }
  }
  S2O_DEVICE void load_moments(int step) const {
    const std::int64_t base =
        head_ / args_.group_size * static_cast<std::int64_t>(args_.num_blocks);
    const int chunk = thread_index() % kChunks;
#pragma unroll
    for (int row = thread_index() / kChunks; row < kLseColumns; row += kLseThreads / kChunks) {
      const int block = step * kLseColumns + row;
      const bool exists = block <= block_;
      const std::int64_t from = (base + (exists ? block : 0)) * kHeadDim + chunk * kChunkElements;
      const auto to = static_cast<std::uint32_t>(swizzled_chunk_offset(kLseColumns, row, chunk));
      copy_async_16(shared_address(s_.moments[step % 2][0]) + to,
                    static_cast<const std::uint16_t*>(args_.means) + from, exists);
      copy_async_16(shared_address(s_.moments[step % 2][1]) + to,
                    static_cast<const std::uint16_t*>(args_.variances) + from, exists);
    }
  }

  S2O_DEVICE void hold_queries() {
    const MatrixPosition source = ldmatrix_a_source(static_cast<unsigned>(lane_index()));
    const std::uint32_t address = swizzled_lane_address(
        shared_address(s_.q), warp_index() * kRowTiles * 16 + source.row, source.column);
#pragma unroll
    for (int part = 0; part < kHeadDim / 16; ++part) {
#pragma unroll
      for (int t = 0; t < kRowTiles; ++t) {
        load_matrix_x4(q_[part][t], swizzled_step_address(address, kLseRows, t * 16, 2 * part));
      }
    }
  }
  // Row of the tile that this thread holds as its row `r`.
  S2O_DEVICE static int row_of(int r) {
    return warp_index() * kRowTiles * 16 + r / 2 * 16 + lane_index() / 4 + r % 2 * 8;
  }

  template <bool kLast>
  S2O_DEVICE void add_columns(int step, int first) {
    float logit[kRowTiles][kColumnTiles][4] = {};
    float spread[kRowTiles][kColumnTiles][4] = {};
    multiply(step % 2, first, logit, spread);
    const LseLogit<Element> logit_of(args_);
#pragma unroll
    for (int r = 0; r < 2 * kRowTiles; ++r) {
      const float own_share = kLast ? lse_own_share(row_of(r)) : 0.0f;
      float x[2 * kColumnTiles];
#pragma unroll
      for (int i = 0; i < 2 * kColumnTiles; ++i) {
        x[i] = logit_of(logit[r / 2][i / 2][r % 2 * 2 + i % 2],
                        spread[r / 2][i / 2][r % 2 * 2 + i % 2]);
        if constexpr (kLast) {
          const int column = step * kLseColumns + first + i / 2 * 8 + lane_index() % 4 * 2 + i % 2;
          x[i] += column == block_ ? own_share : 0.0f;
          if (column > block_) x[i] = kNoWeight;
        }
      }
      sums_[r].add(x);
    }
  }

  S2O_DEVICE void multiply(int buffer, int first, float (&logit)[kRowTiles][kColumnTiles][4],
                           float (&spread)[kRowTiles][kColumnTiles][4]) const {
    const MatrixPosition source = ldmatrix_b_source(static_cast<unsigned>(lane_index()));
    const int row = first + source.row;
    const std::uint32_t mean_lane =
        swizzled_lane_address(shared_address(s_.moments[buffer][0]), row, source.column);
    const std::uint32_t variance_lane =
        swizzled_lane_address(shared_address(s_.moments[buffer][1]), row, source.column);
#pragma unroll
    for (int part = 0; part < kHeadDim / 16; ++part) {
      std::uint32_t square[kRowTiles][4];
#pragma unroll
      for (int t = 0; t < kRowTiles; ++t) {
#pragma unroll
        for (int i = 0; i < 4; ++i) square[t][i] = squared<Element>(q_[part][t][i]);
      }
#pragma unroll
      for (int n = 0; n < kColumnTiles; n += 2) {
        std::uint32_t mean[4];
        std::uint32_t variance[4];
        load_matrix_x4(mean, swizzled_step_address(mean_lane, kLseColumns, n * 8, 2 * part));
        load_matrix_x4(variance,
                       swizzled_step_address(variance_lane, kLseColumns, n * 8, 2 * part));
#pragma unroll
        for (int t = 0; t < kRowTiles; ++t) {
          multiply_accumulate<Element>(logit[t][n], q_[part][t], mean[0], mean[1]);
          multiply_accumulate<Element>(logit[t][n + 1], q_[part][t], mean[2], mean[3]);
          multiply_accumulate<Element>(spread[t][n], square[t], variance[0], variance[1]);
          multiply_accumulate<Element>(spread[t][n + 1], square[t], variance[2], variance[3]);
        }
      }
    }
  }

  S2O_DEVICE void write() const {
#pragma unroll
    for (int r = 0; r < 2 * kRowTiles; ++r) {
      const float lse = sums_[r].finish();
      const std::int64_t token = static_cast<std::int64_t>(block_) * kLseRows + row_of(r);
      if (lane_index() % 4 != 0 || token >= args_.seqlen) continue;
      args_.lse[head_ * args_.seqlen + token] = lse;
    }
  }

  const LseArgs& args_;
  SharedLse<kHeadDim>& s_;
  int block_;
  int head_;
  std::uint32_t q_[kHeadDim / 16][kRowTiles][4];
  LseSum sums_[2 * kRowTiles];
};

template <class Element, int kHeadDim>
struct EstimateLseKernel {
  static constexpr const char* kName = "planning: normalisers";
  static constexpr int kThreads = kLseThreads;
  static constexpr int kMinBlocks = 3;
  static Grid grid(const LseArgs& args) {
    return {.blocks = std::int64_t{args.num_q_heads} * args.num_blocks,
            .shared_bytes = sizeof(SharedLse<kHeadDim>)};
  }
  S2O_DEVICE static void run(const LseArgs& args) { EstimateLse<Element, kHeadDim>(args).run(); }
};

}  // namespace s2o::device
