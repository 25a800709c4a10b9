// Means of blocks of rows, one block of threads each (ops.h).
#pragma once

#include "kernels/device/layout.cuh"
#include "kernels/planning/launch.cuh"
#include "kernels/planning/pooled/ops.h"
#include "kernels/planning/shared/platform_planning.cuh"

namespace s2o::device {

inline constexpr int kPoolThreads = 128;

template <int kHeadDim>
struct SharedPool {
  float sums[kPoolThreads / (kHeadDim / kChunkElements)][kHeadDim];
  float unit_sums[kPoolThreads / (kHeadDim / kChunkElements)][kHeadDim];
  float square[kHeadDim / kChunkElements];
};

template <class Element, int kHeadDim>
class PoolBlocks {
 public:
  S2O_DEVICE explicit PoolBlocks(const PoolArgs& args)
      : args_(args),
        s_(*reinterpret_cast<SharedPool<kHeadDim>*>(shared_memory())),
        head_(block_index() / args.num_blocks),
        block_(block_index() % args.num_blocks),
        chunk_(thread_index() % kChunks),
        group_(thread_index() / kChunks) {}

  S2O_DEVICE void run() {
    const std::int64_t begin = static_cast<std::int64_t>(block_) * args_.block;
    const std::int64_t left = args_.seqlen - begin;
    const int count = left < args_.block ? static_cast<int>(left) : args_.block;
    float offset[kChunkElements];
    load_offset(offset);
    float sum[kChunkElements];
    float unit_sum[kChunkElements];
#pragma unroll
    for (int e = 0; e < kChunkElements; ++e) sum[e] = unit_sum[e] = 0.0f;
    const int rounds = ceil_div(args_.block, kGroups);
#pragma unroll 4
    for (int round = 0; round < rounds; ++round) {
      const int row = group_ + round * kGroups;
      const bool exists = row < count;
      float x[kChunkElements];
      load_row(begin + (exists ? row : 0), offset, x);
#pragma unroll
      for (int e = 0; e < kChunkElements; ++e) sum[e] += exists ? x[e] : 0.0f;
      // All lanes take part in the sum over a row, whether or not the row exists.
      if (args_.similar != nullptr) add_unit_row(x, exists, unit_sum);
    }
#pragma unroll
    for (int e = 0; e < kChunkElements; ++e) {
      s_.sums[group_][chunk_ * kChunkElements + e] = sum[e];
      s_.unit_sums[group_][chunk_ * kChunkElements + e] = unit_sum[e];
    }
    sync_block(kPoolThreads);
    if (group_ == 0) write_means(args_.divide_by_block ? args_.block : count);
    if (args_.similar != nullptr) write_similar(count);
  }

 private:
  static constexpr int kChunks = kHeadDim / kChunkElements;
  static constexpr int kGroups = kPoolThreads / kChunks;

  S2O_DEVICE static void unpack(const void* source, float (&x)[kChunkElements]) {
    const Words4 words = load_global_16(source);
#pragma unroll
    for (int e = 0; e < kChunkElements; ++e) {
      x[e] = e % 2 == 0 ? unpack_low<Element>(words.word[e / 2])
                        : unpack_high<Element>(words.word[e / 2]);
    }
  }
  S2O_DEVICE void load_offset(float (&offset)[kChunkElements]) const {
    if (args_.offset == nullptr) return;
    unpack(static_cast<const std::uint16_t*>(args_.offset) + head_ * kHeadDim +
               chunk_ * kChunkElements,
           offset);
  }
  S2O_DEVICE void load_row(std::int64_t slot, const float (&offset)[kChunkElements],
                           float (&x)[kChunkElements]) const {
    const std::int64_t token =
        args_.order == nullptr ? slot : load_global(args_.order + head_ * args_.seqlen + slot);
    unpack(static_cast<const std::uint16_t*>(args_.x) +
               (head_ / args_.heads_per_source * args_.seqlen + token) * kHeadDim +
               chunk_ * kChunkElements,
           x);
    if (args_.offset == nullptr) return;
#pragma unroll
    for (int pair = 0; pair < kChunkElements / 2; ++pair) {
      const std::uint32_t rounded = pack_pair<Element>(x[2 * pair] - offset[2 * pair],
                                                       x[2 * pair + 1] - offset[2 * pair + 1]);
      x[2 * pair] = unpack_low<Element>(rounded);
      x[2 * pair + 1] = unpack_high<Element>(rounded);
    }
  }

  S2O_DEVICE static void add_unit_row(const float (&x)[kChunkElements], bool exists,
                                      float (&unit_sum)[kChunkElements]) {
    float square = 0.0f;
#pragma unroll
    for (int e = 0; e < kChunkElements; ++e) square = fused(x[e], x[e], square);
#pragma unroll
    for (int mask = 1; mask < kChunks; mask *= 2) square += shuffle_xor(square, mask);
    if (!exists) return;
    const float norm = square_root(square);
#pragma unroll
    for (int pair = 0; pair < kChunkElements / 2; ++pair) {
      const std::uint32_t unit =
          pack_pair<Fp16>(divide(x[2 * pair], norm), divide(x[2 * pair + 1], norm));
      unit_sum[2 * pair] += unpack_low<Fp16>(unit);
      unit_sum[2 * pair + 1] += unpack_high<Fp16>(unit);
    }
  }

  S2O_DEVICE float column_sum(const float (&sums)[kGroups][kHeadDim], int column) const {
    float sum = 0.0f;
#pragma unroll 4
    for (int group = 0; group < kGroups; ++group) sum += sums[group][column];
    return sum;
  }
  S2O_DEVICE void write_means(int divisor) const {
    Words4 words;
#pragma unroll
    for (int pair = 0; pair < kChunkElements / 2; ++pair) {
      const int column = chunk_ * kChunkElements + 2 * pair;
      words.word[pair] =
          pack_pair<Element>(divide(column_sum(s_.sums, column), static_cast<float>(divisor)),
                             divide(column_sum(s_.sums, column + 1), static_cast<float>(divisor)));
    }
    store_global_16(static_cast<std::uint16_t*>(args_.means) +
                        static_cast<std::int64_t>(block_index()) * kHeadDim +
                        chunk_ * kChunkElements,
                    words);
  }
  S2O_DEVICE void write_similar(int count) const {
    if (group_ == 0) {
      float square = 0.0f;
#pragma unroll
      for (int e = 0; e < kChunkElements; ++e) {
        const float sum = column_sum(s_.unit_sums, chunk_ * kChunkElements + e);
        square = fused(sum, sum, square);
      }
      s_.square[chunk_] = square;
    }
    sync_block(kPoolThreads);
    if (thread_index() != 0) return;
    float square = 0.0f;
    for (int chunk = 0; chunk < kChunks; ++chunk) square += s_.square[chunk];
    const auto rows = static_cast<float>(count);
    args_.similar[block_index()] =
        count == args_.block && divide(square, rows * rows) > args_.similarity_threshold ? 1 : 0;
  }

  const PoolArgs& args_;
  SharedPool<kHeadDim>& s_;
  const int head_;
  const int block_;
  const int chunk_;
  const int group_;
};

template <class Element, int kHeadDim>
struct PoolBlocksKernel {
  static constexpr const char* kName = "planning: pool blocks";
  static constexpr int kThreads = kPoolThreads;
  static constexpr int kMinBlocks = 6;
  static Grid grid(const PoolArgs& args) {
    return {.blocks = std::int64_t{args.num_heads} * args.num_blocks,
            .shared_bytes = sizeof(SharedPool<kHeadDim>)};
  }
  S2O_DEVICE static void run(const PoolArgs& args) { PoolBlocks<Element, kHeadDim>(args).run(); }
};

}  // namespace s2o::device
