// Mean of the queries of each segment: one block per row (history.h). Reads every
// query once, 16 bytes a thread, and sums in fp32.
#pragma once

#include "kernels/device/layout.cuh"
#include "kernels/planning/launch.cuh"
#include "kernels/planning/s2o/ops.h"
#include "kernels/planning/shared/platform_planning.cuh"

namespace s2o::device {

inline constexpr int kMeanThreads = 256;

template <int kHeadDim>
struct SharedMeans {
  float sums[kMeanThreads / (kHeadDim / kChunkElements)][kHeadDim];
};

template <class Element, int kHeadDim>
class MeanQueries {
 public:
  S2O_DEVICE explicit MeanQueries(const MeanQueryArgs& args)
      : args_(args), s_(*reinterpret_cast<Shared*>(shared_memory())) {}

  S2O_DEVICE void run() {
    const int list = block_index() / args_.shape.num_segments;
    const int segment = block_index() % args_.shape.num_segments;
    const std::int64_t begin = segment * args_.shape.segment_size;
    const std::int64_t left = args_.shape.seqlen - begin;
    const std::int64_t count = left < args_.shape.segment_size ? left : args_.shape.segment_size;
    const int chunk = thread_index() % kChunks;
    const int group = thread_index() / kChunks;

    float sum[kChunkElements];
#pragma unroll
    for (int e = 0; e < kChunkElements; ++e) sum[e] = 0.0f;
    for (int head = 0; head < args_.heads_per_list; ++head) {
#pragma unroll 4
      for (std::int64_t row = group; row < count; row += kGroups) {
        float x[kChunkElements];
        load(list * args_.heads_per_list + head, begin + row, chunk, x);
#pragma unroll
        for (int e = 0; e < kChunkElements; ++e) sum[e] += x[e];
      }
    }
#pragma unroll
    for (int e = 0; e < kChunkElements; ++e) s_.sums[group][chunk * kChunkElements + e] = sum[e];
    sync_block(kMeanThreads);
    if (group == 0) write(list, segment, chunk, static_cast<float>(count));
  }

 private:
  using Shared = SharedMeans<kHeadDim>;
  static constexpr int kChunks = kHeadDim / kChunkElements;
  static constexpr int kGroups = kMeanThreads / kChunks;

  S2O_DEVICE void load(int head, std::int64_t token, int chunk, float (&x)[kChunkElements]) const {
    const auto* q = static_cast<const std::uint16_t*>(args_.q);
    const Words4 words =
        load_global_16(q + (head * args_.shape.seqlen + token) * kHeadDim + chunk * kChunkElements);
#pragma unroll
    for (int e = 0; e < kChunkElements; ++e) {
      x[e] = e % 2 == 0 ? unpack_low<Element>(words.word[e / 2])
                        : unpack_high<Element>(words.word[e / 2]);
    }
  }

  S2O_DEVICE void write(int list, int segment, int chunk, float count_per_head) const {
    const float scale =
        args_.softmax_scale / (count_per_head * static_cast<float>(args_.heads_per_list));
    float mean[kChunkElements];
#pragma unroll
    for (int e = 0; e < kChunkElements; ++e) {
      float sum = 0.0f;
#pragma unroll 4
      for (int group = 0; group < kGroups; ++group) {
        sum += s_.sums[group][chunk * kChunkElements + e];
      }
      mean[e] = sum * scale;
    }
    const HistoryShape& shape = args_.shape;
    const std::int64_t kv_head = list / shape.lists_per_kv_head;
    const std::int64_t row = (kv_head * shape.num_segments + segment) * shape.lists_per_kv_head +
                             list % shape.lists_per_kv_head;
    const std::int64_t offset = row * kHeadDim + chunk * kChunkElements;
    store(static_cast<std::uint16_t*>(args_.means) + offset, mean);
  }
  static S2O_DEVICE void store(std::uint16_t* target, const float (&x)[kChunkElements]) {
    Words4 words;
#pragma unroll
    for (int pair = 0; pair < kChunkElements / 2; ++pair) {
      words.word[pair] = pack_pair<Element>(x[2 * pair], x[2 * pair + 1]);
    }
    store_global_16(target, words);
  }

  const MeanQueryArgs& args_;
  Shared& s_;
};

template <class Element, int kHeadDim>
struct MeanQueriesKernel {
  static constexpr const char* kName = "planning: mean queries";
  static constexpr int kThreads = kMeanThreads;
  static constexpr int kMinBlocks = 4;
  static Grid grid(const MeanQueryArgs& args) {
    return {.blocks = std::int64_t{args.shape.num_lists()} * args.shape.num_segments,
            .shared_bytes = sizeof(SharedMeans<kHeadDim>)};
  }
  S2O_DEVICE static void run(const MeanQueryArgs& args) {
    MeanQueries<Element, kHeadDim>(args).run();
  }
};

}  // namespace s2o::device
