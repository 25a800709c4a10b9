// Means and variances of blocks of rows, and each row's distance from its mean (cluster_ops.h):
// one block of threads a block of rows, which stays in registers between the two passes.
#pragma once

#include "kernels/device/layout.cuh"
#include "kernels/planning/launch.cuh"
#include "kernels/planning/s2o/cluster_ops.h"
#include "kernels/planning/s2o/mean_queries.cuh"
#include "kernels/planning/shared/platform_planning.cuh"

namespace s2o::device {

inline constexpr int kMomentThreads = 256;

template <int kHeadDim>
struct SharedMoments {
  float sums[kMomentThreads / (kHeadDim / kChunkElements)][kHeadDim];
  float means[kHeadDim];
};

template <class Element, int kHeadDim>
class BlockMoments {
 public:
  S2O_DEVICE explicit BlockMoments(const MomentArgs& args)
      : args_(args), s_(*reinterpret_cast<SharedMoments<kHeadDim>*>(shared_memory())) {
    head_ = block_index() / args.num_blocks;
    block_ = block_index() % args.num_blocks;
    first_ = static_cast<std::int64_t>(block_) * kMomentBlock;
    const std::int64_t left = args.seqlen - first_;
    count_ = left < kMomentBlock ? static_cast<int>(left) : kMomentBlock;
    chunk_ = thread_index() % kChunks;
    group_ = thread_index() / kChunks;
  }

  S2O_DEVICE void run() {
    float x[kRows][kChunkElements];
#pragma unroll
    for (int r = 0; r < kRows; ++r) load(group_ + r * kGroups, x[r]);
    float sum[kChunkElements] = {};
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
#pragma unroll
      for (int e = 0; e < kChunkElements; ++e) sum[e] += x[r][e];
    }
    const float mean = column_mean(sum);
    if (thread_index() < kHeadDim) s_.means[thread_index()] = mean;
    sync_block(kMomentThreads);
    float square[kChunkElements] = {};
    float distance[kRows] = {};
#pragma unroll
    for (int e = 0; e < kChunkElements; ++e) {
      const float centre = s_.means[chunk_ * kChunkElements + e];
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
        const float deviation = group_ + r * kGroups < count_ ? x[r][e] - centre : 0.0f;
        square[e] = fused(deviation, deviation, square[e]);
        distance[r] = fused(deviation, deviation, distance[r]);
      }
    }
    if (args_.log_distances != nullptr) store_distances(distance);
    if (args_.means == nullptr) return;
    const float variance = column_mean(square) * kVarianceUnit<Element>;
    if (thread_index() >= kHeadDim) return;
    const std::int64_t place =
        (static_cast<std::int64_t>(head_) * args_.num_blocks + block_) * kHeadDim + thread_index();
    static_cast<std::uint16_t*>(args_.means)[place] = to_element(mean);
    static_cast<std::uint16_t*>(args_.variances)[place] = to_element(variance);
  }

 private:
  static constexpr int kChunks = kHeadDim / kChunkElements;
  static constexpr int kGroups = kMomentThreads / kChunks;
  static constexpr int kRows = kMomentBlock / kGroups;

  S2O_DEVICE static std::uint16_t to_element(float x) {
    return static_cast<std::uint16_t>(pack_pair<Element>(x, 0.0f) & 0xffffu);
  }

  // Rows beyond the sequence are zeros.
  S2O_DEVICE void load(int row, float (&x)[kChunkElements]) const {
    const bool exists = row < count_;
    const Words4 words = load_global_16(
        static_cast<const std::uint16_t*>(args_.x) +
        (head_ * args_.seqlen + first_ + (exists ? row : 0)) * kHeadDim + chunk_ * kChunkElements);
#pragma unroll
    for (int e = 0; e < kChunkElements; ++e) {
      const float value = e % 2 == 0 ? unpack_low<Element>(words.word[e / 2])
                                     : unpack_high<Element>(words.word[e / 2]);
      x[e] = exists ? value : 0.0f;
    }
  }

  // Mean over the rows of column thread_index(), in threads that have one.
  S2O_DEVICE float column_mean(const float (&own)[kChunkElements]) {
    sync_block(kMomentThreads);  // nobody reads the sums any more
#pragma unroll
    for (int e = 0; e < kChunkElements; ++e) {
      s_.sums[group_][chunk_ * kChunkElements + e] = own[e];
    }
    sync_block(kMomentThreads);
    float sum = 0.0f;
    if (thread_index() < kHeadDim) {
#pragma unroll 8
      for (int group = 0; group < kGroups; ++group) sum += s_.sums[group][thread_index()];
    }
    return sum / static_cast<float>(count_);
  }

  S2O_DEVICE void store_distances(const float (&distance)[kRows]) const {
    float* const target = args_.log_distances + head_ * args_.seqlen + first_;
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      float square = distance[r];
#pragma unroll
      for (int mask = 1; mask < kChunks; mask *= 2) square += shuffle_xor(square, mask);
      const int row = group_ + r * kGroups;
      // The floor keeps a row that equals the mean finite.
      if (chunk_ == 0 && row < count_) target[row] = 0.5f * log_natural(square + 1e-20f);
    }
  }

  const MomentArgs& args_;
  SharedMoments<kHeadDim>& s_;
  int head_;
  int block_;
  std::int64_t first_;
  int count_;
  int chunk_;
  int group_;
};

template <class Element, int kHeadDim>
struct BlockMomentsKernel {
  static constexpr const char* kName = "planning: block moments";
  static constexpr int kThreads = kMomentThreads;
  static constexpr int kMinBlocks = 0;
  static Grid grid(const MomentArgs& args) {
    return {.blocks = std::int64_t{args.num_heads} * args.num_blocks,
            .shared_bytes = sizeof(SharedMoments<kHeadDim>)};
  }
  S2O_DEVICE static void run(const MomentArgs& args) {
    BlockMoments<Element, kHeadDim>(args).run();
  }
};

}  // namespace s2o::device
