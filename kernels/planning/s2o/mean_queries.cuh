// Mean and variance of the queries of each segment: one block per row (history.h). Reads every
// query once, 16 bytes a thread, and sums in fp32.
#pragma once

#include "kernels/device/layout.cuh"
#include "kernels/planning/launch.cuh"
#include "kernels/planning/s2o/ops.h"
#include "kernels/planning/shared/platform_planning.cuh"

namespace s2o::device {

inline constexpr int kMeanThreads = 256;
// Variances of fp16 inputs are kept in units of this, so that squares of large keys stay finite
// (key_scores.cuh scales keys by its inverse square root).
template <class Element>
inline constexpr float kVarianceUnit = Element::kIsBf16 ? 1.0f : 1.0f / 256.0f;
// Squares of both halves, times kVarianceUnit.
template <class Element>
S2O_DEVICE std::uint32_t squared(std::uint32_t x) {
  if constexpr (!Element::kIsBf16) x = multiply_pairs<Element>(x, 0x2c002c00u);  // 1/16
  return multiply_pairs<Element>(x, x);
}

// With kNormalizers the mean is lowered by the covariance of the queries with their lse.
template <int kHeadDim, bool kNormalizers>
struct SharedMeans {
  static constexpr int kSums = kNormalizers ? 3 : 2;
  float sums[kMeanThreads / (kHeadDim / kChunkElements)][kSums][kHeadDim];
  float lse_sums[kMeanThreads / (kHeadDim / kChunkElements)];
};

template <class Element, int kHeadDim, bool kNormalizers>
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

    // Deviations from the first query: the variance keeps its digits when the mean is large.
    float origin[kChunkElements];
    float sum[kChunkElements];
    float square[kChunkElements];
    float product[kChunkElements];  // with the lse
    float lse_sum = 0.0f;
    load(list * args_.heads_per_list, begin, chunk, origin);
    const float lse_origin = kNormalizers ? lse_of(list * args_.heads_per_list, begin) : 0.0f;
#pragma unroll
    for (int e = 0; e < kChunkElements; ++e) sum[e] = square[e] = product[e] = 0.0f;
    for (int head = 0; head < args_.heads_per_list; ++head) {
#pragma unroll 4
      for (std::int64_t row = group; row < count; row += kGroups) {
        float x[kChunkElements];
        load(list * args_.heads_per_list + head, begin + row, chunk, x);
#pragma unroll
        for (int e = 0; e < kChunkElements; ++e) {
          const float deviation = x[e] - origin[e];
          sum[e] += deviation;
          square[e] = fused(deviation, deviation, square[e]);
          x[e] = deviation;
        }
        if constexpr (kNormalizers) {
          const float lse = lse_of(list * args_.heads_per_list + head, begin + row) - lse_origin;
          lse_sum += lse;
#pragma unroll
          for (int e = 0; e < kChunkElements; ++e) product[e] = fused(x[e], lse, product[e]);
        }
      }
    }
#pragma unroll
    for (int e = 0; e < kChunkElements; ++e) {
      s_.sums[group][0][chunk * kChunkElements + e] = sum[e];
      s_.sums[group][1][chunk * kChunkElements + e] = square[e];
      if constexpr (kNormalizers) s_.sums[group][2][chunk * kChunkElements + e] = product[e];
    }
    if (kNormalizers && chunk == 0) s_.lse_sums[group] = lse_sum;
    sync_block(kMeanThreads);
    if (group == 0) write(list, segment, chunk, origin, static_cast<float>(count));
  }

 private:
  using Shared = SharedMeans<kHeadDim, kNormalizers>;
  static constexpr int kChunks = kHeadDim / kChunkElements;
  static constexpr int kGroups = kMeanThreads / kChunks;

  S2O_DEVICE float lse_of(int head, std::int64_t token) const {
    return load_global(args_.lse + head * args_.shape.seqlen + token);
  }

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

  S2O_DEVICE void write(int list, int segment, int chunk, const float (&origin)[kChunkElements],
                        float count_per_head) const {
    const float inverse = 1.0f / (count_per_head * static_cast<float>(args_.heads_per_list));
    const float scale = args_.softmax_scale;
    float mean[kChunkElements];
    float half_variance[kChunkElements];
    float mean_lse = 0.0f;
    if constexpr (kNormalizers) {
      for (int group = 0; group < kGroups; ++group) mean_lse += s_.lse_sums[group] * inverse;
    }
#pragma unroll
    for (int e = 0; e < kChunkElements; ++e) {
      float sum = 0.0f;
      float square = 0.0f;
      float product = 0.0f;
#pragma unroll 4
      for (int group = 0; group < kGroups; ++group) {
        sum += s_.sums[group][0][chunk * kChunkElements + e];
        square += s_.sums[group][1][chunk * kChunkElements + e];
        if constexpr (kNormalizers) product += s_.sums[group][2][chunk * kChunkElements + e];
      }
      const float deviation = sum * inverse;
      mean[e] = (origin[e] + deviation) * scale;
      if constexpr (kNormalizers) mean[e] -= fused(-deviation, mean_lse, product * inverse) * scale;
      const float variance = max_of(fused(-deviation, deviation, square * inverse), 0.0f);
      half_variance[e] = 0.5f * scale * scale * variance / kVarianceUnit<Element>;
    }
    const HistoryShape& shape = args_.shape;
    const std::int64_t kv_head = list / shape.lists_per_kv_head;
    const std::int64_t row = (kv_head * shape.num_segments + segment) * shape.lists_per_kv_head +
                             list % shape.lists_per_kv_head;
    const std::int64_t offset = row * kHeadDim + chunk * kChunkElements;
    store(static_cast<std::uint16_t*>(args_.means) + offset, mean);
    if (args_.variances != nullptr) {
      store(static_cast<std::uint16_t*>(args_.variances) + offset, half_variance);
    }
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

template <class Element, int kHeadDim, bool kNormalizers>
struct MeanQueriesKernel {
  static constexpr const char* kName = "planning: mean queries";
  static constexpr int kThreads = kMeanThreads;
  static constexpr int kMinBlocks = kNormalizers ? 3 : 4;
  static Grid grid(const MeanQueryArgs& args) {
    return {.blocks = std::int64_t{args.shape.num_lists()} * args.shape.num_segments,
            .shared_bytes = sizeof(SharedMeans<kHeadDim, kNormalizers>)};
  }
  S2O_DEVICE static void run(const MeanQueryArgs& args) {
    MeanQueries<Element, kHeadDim, kNormalizers>(args).run();
  }
};

}  // namespace s2o::device
