// Masses of blocks of keys from the partial sums of reduced rows (ops.h): one block of
// threads a block of queries. First the largest logit and the normaliser of each reduced row, then
// the sums over rows.
#pragma once

#include "kernels/planning/launch.cuh"
#include "kernels/planning/shared/platform_planning.cuh"
#include "kernels/planning/xattention/ops.h"

namespace s2o::device {

inline constexpr int kStrideMassThreads = 128;

struct SharedStrideMass {
  float largest[kStrideMassThreads];  // of each thread, then of each row
  float normaliser[kStrideMassThreads];
  float row_largest[32];
  float row_factor[32];
};

template <class Element, int kColumnsPerBlock>
class StrideMass {
 public:
  S2O_DEVICE explicit StrideMass(const XAttentionMassArgs& args)
      : args_(args), s_(*reinterpret_cast<SharedStrideMass*>(shared_memory())) {
    head_ = block_index() / args.num_blocks;
    block_ = args.first_block + block_index() % args.num_blocks;
    const int first_row = block_ * kRows;
    const int tile = first_row / kStrideRows;
    num_rows_ = min_of(kRows, args.num_rows - first_row);
    num_groups_ = (first_row + num_rows_ - 1) / kStrideGroup + 1;
    const std::int64_t group = head_ * stride_groups(args.first_tile, args.end_tile) +
                               stride_groups(args.first_tile, tile);
    first_ = group * kStrideRows + first_row % kStrideRows;
  }

  S2O_DEVICE void run() {
    normalise_rows();
    auto* const target = args_.mass + (static_cast<std::int64_t>(head_) * args_.num_blocks +
                                       block_ - args_.first_block) *
                                          args_.row_stride;
    for (int group = thread_index(); group < num_groups_; group += kStrideMassThreads) {
      float mass[kBlocks] = {};
#pragma unroll 4
      for (int row = 0; row < num_rows_; ++row) {
        const std::int64_t place = first_ + static_cast<std::int64_t>(group) * kStrideRows + row;
        const float factor =
            exp2_fast(load_global(args_.references + place) - s_.row_largest[row]) *
            s_.row_factor[row];
        float sums[kBlocks];
        load_sums(place, sums);
#pragma unroll
        for (int b = 0; b < kBlocks; ++b) mass[b] = fused(sums[b], factor, mass[b]);
      }
#pragma unroll
      for (int b = 0; b < kBlocks; ++b) {
        if (group * kBlocks + b > block_) break;
        target[group * kBlocks + b] =
            static_cast<std::uint16_t>(pack_pair<Element>(mass[b], 0.0f) & 0xffffu);
      }
    }
  }

 private:
  static constexpr int kRows = kColumnsPerBlock;  // of a block of queries
  static constexpr int kBlocks = kStrideGroup / kColumnsPerBlock;
  static constexpr int kThreadsPerRow = kStrideMassThreads / kRows;

  // Of a row and group, in as few loads as there can be.
  S2O_DEVICE void load_sums(std::int64_t place, float (&sums)[kBlocks]) const {
    const float* const source = args_.sums + place * kBlocks;
    if constexpr (kBlocks == 2) {
      const FloatPair pair = load_global_pair(source);
      sums[0] = pair.low;
      sums[1] = pair.high;
    } else {
#pragma unroll
      for (int b = 0; b < kBlocks; b += 4) {
        const Words4 words = load_global_16(source + b);
#pragma unroll
        for (int i = 0; i < 4; ++i) sums[b + i] = bits_float(words.word[i]);
      }
    }
  }

  S2O_DEVICE void normalise_rows() {
    const int row = thread_index() % kRows;
    float largest = -1e30f;
    float normaliser = 0.0f;
    for (int group = thread_index() / kRows; group < num_groups_ && row < num_rows_;
         group += kThreadsPerRow) {
      const std::int64_t place = first_ + static_cast<std::int64_t>(group) * kStrideRows + row;
      const float reference = load_global(args_.references + place);
      float sums[kBlocks];
      load_sums(place, sums);
      float sum = 0.0f;
#pragma unroll
      for (int b = 0; b < kBlocks; ++b) sum += sums[b];
      const float higher = max_of(largest, reference);
      normaliser =
          fused(normaliser, exp2_fast(largest - higher), sum * exp2_fast(reference - higher));
      largest = higher;
    }
    s_.largest[thread_index()] = largest;
    s_.normaliser[thread_index()] = normaliser;
    sync_block(kStrideMassThreads);
    if (thread_index() < kRows) {
      for (int i = 1; i < kThreadsPerRow; ++i) {
        largest = max_of(largest, s_.largest[row + i * kRows]);
      }
      float sum = 0.0f;
      for (int i = 0; i < kThreadsPerRow; ++i) {
        sum = fused(s_.normaliser[row + i * kRows],
                    exp2_fast(s_.largest[row + i * kRows] - largest), sum);
      }
      s_.row_largest[row] = largest;
      s_.row_factor[row] = 1.0f / sum;
    }
    sync_block(kStrideMassThreads);
  }

  const XAttentionMassArgs& args_;
  SharedStrideMass& s_;
  int head_;
  int block_;
  int num_rows_;
  int num_groups_;
  std::int64_t first_;
};

template <class Element, int kColumnsPerBlock>
struct StrideMassKernel {
  static constexpr const char* kName = "planning: masses of blocks";
  static constexpr int kThreads = kStrideMassThreads;
  static constexpr int kMinBlocks = 0;
  static Grid grid(const XAttentionMassArgs& args) {
    return {.blocks = std::int64_t{args.num_q_heads} * args.num_blocks,
            .shared_bytes = sizeof(SharedStrideMass)};
  }
  S2O_DEVICE static void run(const XAttentionMassArgs& args) {
    StrideMass<Element, kColumnsPerBlock>(args).run();
  }
};

}  // namespace s2o::device
