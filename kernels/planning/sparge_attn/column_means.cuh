// Means of all keys of a head (ColumnMeanArgs in ops.h): sums of parts, then their sum.
#pragma once

#include "kernels/planning/pooled/pool_blocks.cuh"
#include "kernels/planning/sparge_attn/ops.h"

namespace s2o::device {

// First half of the mean over all rows: one block of threads sums one part of one head.
template <class Element, int kHeadDim>
S2O_DEVICE void column_sums_part(const ColumnMeanArgs& args) {
  constexpr int kChunks = kHeadDim / kChunkElements;
  constexpr int kGroups = kPoolThreads / kChunks;
  auto& shared = *reinterpret_cast<SharedPool<kHeadDim>*>(shared_memory());
  const std::int64_t head = block_index() / args.num_parts;
  const std::int64_t begin =
      static_cast<std::int64_t>(block_index() % args.num_parts) * kColumnSumRows;
  const std::int64_t end =
      begin + kColumnSumRows < args.seqlen ? begin + kColumnSumRows : args.seqlen;
  const int chunk = thread_index() % kChunks;
  const int group = thread_index() / kChunks;
  float sum[kChunkElements];
#pragma unroll
  for (int e = 0; e < kChunkElements; ++e) sum[e] = 0.0f;
#pragma unroll 4
  for (std::int64_t row = begin + group; row < end; row += kGroups) {
    const Words4 words =
        load_global_16(static_cast<const std::uint16_t*>(args.x) +
                       (head * args.seqlen + row) * kHeadDim + chunk * kChunkElements);
#pragma unroll
    for (int e = 0; e < kChunkElements; ++e) {
      sum[e] += e % 2 == 0 ? unpack_low<Element>(words.word[e / 2])
                           : unpack_high<Element>(words.word[e / 2]);
    }
  }
#pragma unroll
  for (int e = 0; e < kChunkElements; ++e) shared.sums[group][chunk * kChunkElements + e] = sum[e];
  sync_block(kPoolThreads);
  if (thread_index() >= kHeadDim) return;
  float total = 0.0f;
#pragma unroll 4
  for (int g = 0; g < kGroups; ++g) total += shared.sums[g][thread_index()];
  args.partial_sums[static_cast<std::int64_t>(block_index()) * kHeadDim + thread_index()] = total;
}

// Second half: one block of kHeadDim threads a head.
template <class Element, int kHeadDim>
S2O_DEVICE void column_means_head(const ColumnMeanArgs& args) {
  const std::int64_t head = block_index();
  double total = 0.0;
#pragma unroll 8
  for (std::int64_t part = 0; part < args.num_parts; ++part) {
    total += static_cast<double>(
        args.partial_sums[(head * args.num_parts + part) * kHeadDim + thread_index()]);
  }
  const auto mean = static_cast<float>(total / static_cast<double>(args.seqlen));
  static_cast<std::uint16_t*>(args.means)[head * kHeadDim + thread_index()] =
      static_cast<std::uint16_t>(pack_pair<Element>(mean, 0.0f) & 0xffffu);
}

template <class Element, int kHeadDim>
struct ColumnSumsKernel {
  static constexpr const char* kName = "planning: column sums";
  static constexpr int kThreads = kPoolThreads;
  static constexpr int kMinBlocks = 0;
  static Grid grid(const ColumnMeanArgs& args) {
    return {.blocks = std::int64_t{args.num_heads} * args.num_parts,
            .shared_bytes = sizeof(SharedPool<kHeadDim>)};
  }
  S2O_DEVICE static void run(const ColumnMeanArgs& args) {
    column_sums_part<Element, kHeadDim>(args);
  }
};

template <class Element, int kHeadDim>
struct ColumnMeansKernel {
  static constexpr const char* kName = "planning: column means";
  static constexpr int kThreads = kHeadDim;
  static constexpr int kMinBlocks = 0;
  static Grid grid(const ColumnMeanArgs& args) { return {.blocks = args.num_heads}; }
  S2O_DEVICE static void run(const ColumnMeanArgs& args) {
    column_means_head<Element, kHeadDim>(args);
  }
};

}  // namespace s2o::device
