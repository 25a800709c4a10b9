// Order of the queries inside each segment by their product with a guide vector
// (query_order_ops.h), in three kernels: sums of rows per segment, guides, ranks.
#pragma once

#include "kernels/device/layout.cuh"
#include "kernels/planning/launch.cuh"
#include "kernels/planning/s2o/query_order_ops.h"
#include "kernels/planning/shared/platform_planning.cuh"

namespace s2o::device {

inline constexpr int kGuideThreads = 256;

template <int kHeadDim>
struct SharedGuideSums {
  float sums[kGuideThreads / (kHeadDim / kChunkElements)][kHeadDim];
};

// One block of threads a source head and segment.
template <class Element, int kHeadDim>
S2O_DEVICE void sum_segment(const QueryOrderArgs& args) {
  constexpr int kChunks = kHeadDim / kChunkElements;
  constexpr int kGroups = kGuideThreads / kChunks;
  auto& s = *reinterpret_cast<SharedGuideSums<kHeadDim>*>(shared_memory());
  const HistoryShape& shape = args.shape;
  const std::int64_t head = block_index() / shape.num_segments;
  const std::int64_t begin = block_index() % shape.num_segments * shape.segment_size;
  const std::int64_t left = shape.seqlen - begin;
  const std::int64_t count = left < shape.segment_size ? left : shape.segment_size;
  const int chunk = thread_index() % kChunks;
  const int group = thread_index() / kChunks;
  const void* const source = args.kind == QueryGuide::kSegmentMeanQuery ? args.q : args.k;
  const auto* const rows = static_cast<const std::uint16_t*>(source) +
                           (head * shape.seqlen + begin) * kHeadDim + chunk * kChunkElements;
  float sum[kChunkElements] = {};
#pragma unroll 4
  for (std::int64_t row = group; row < count; row += kGroups) {
    const Words4 words = load_global_16(rows + row * kHeadDim);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      sum[2 * i] += unpack_low<Element>(words.word[i]);
      sum[2 * i + 1] += unpack_high<Element>(words.word[i]);
    }
  }
#pragma unroll
  for (int e = 0; e < kChunkElements; ++e) s.sums[group][chunk * kChunkElements + e] = sum[e];
  sync_block(kGuideThreads);
  if (thread_index() >= kHeadDim) return;
  float total = 0.0f;
#pragma unroll 8
  for (int g = 0; g < kGroups; ++g) total += s.sums[g][thread_index()];
  args.guides[static_cast<std::int64_t>(block_index()) * kHeadDim + thread_index()] = total;
}

// From sums to guides, in place; one block of kHeadDim threads a source head.
template <int kHeadDim>
S2O_DEVICE void make_guides(const QueryOrderArgs& args) {
  const HistoryShape& shape = args.shape;
  float* const guides = args.guides +
                        static_cast<std::int64_t>(block_index()) * shape.num_segments * kHeadDim +
                        thread_index();
  float total = 0.0f;
#pragma unroll 8
  for (int segment = 0; segment < shape.num_segments; ++segment) {
    const std::int64_t begin = segment * shape.segment_size;
    const std::int64_t end =
        begin + shape.segment_size < shape.seqlen ? begin + shape.segment_size : shape.seqlen;
    const float sum = guides[static_cast<std::int64_t>(segment) * kHeadDim];
    total += sum;
    const bool prefix = args.kind == QueryGuide::kPrefixMeanKey;
    guides[static_cast<std::int64_t>(segment) * kHeadDim] =
        (prefix ? total : sum) / static_cast<float>(prefix ? end : end - begin);
  }
  if (args.kind != QueryGuide::kGlobalMeanKey) return;
  for (int segment = 0; segment < shape.num_segments; ++segment) {
    guides[static_cast<std::int64_t>(segment) * kHeadDim] =
        total / static_cast<float>(shape.seqlen);
  }
}

// Queries of a segment by descending product with its guide, ties by lower token: a query's place
// is the number of queries before it. One block of threads a query head and segment.
template <class Element, int kHeadDim>
S2O_DEVICE void order_queries(const QueryOrderArgs& args) {
  auto* const products = reinterpret_cast<float*>(shared_memory());
  const HistoryShape& shape = args.shape;
  const int head = block_index() / shape.num_segments;
  const int segment = block_index() % shape.num_segments;
  const std::int64_t begin = segment * shape.segment_size;
  const std::int64_t left = shape.seqlen - begin;
  const int count = static_cast<int>(left < shape.segment_size ? left : shape.segment_size);
  const int source = args.kind == QueryGuide::kSegmentMeanQuery ? head : head / args.group_size;
  const float* const guide =
      args.guides + (static_cast<std::int64_t>(source) * shape.num_segments + segment) * kHeadDim;
  constexpr int kPairs = kHeadDim / 64;  // of a lane
  float own_guide[2 * kPairs];
#pragma unroll
  for (int i = 0; i < 2 * kPairs; ++i) {
    own_guide[i] = load_global(guide + i / 2 * 64 + lane_index() * 2 + i % 2);
  }
  bool finite = true;
#pragma unroll 2
  for (int row = warp_index(); row < count; row += kGuideThreads / 32) {
    const auto* const q = reinterpret_cast<const std::uint32_t*>(
        static_cast<const std::uint16_t*>(args.q) + (head * shape.seqlen + begin + row) * kHeadDim);
    float sum = 0.0f;
#pragma unroll
    for (int i = 0; i < kPairs; ++i) {
      const std::uint32_t pair = load_global(q + i * 32 + lane_index());
      sum = fused(unpack_low<Element>(pair), own_guide[2 * i],
                  fused(unpack_high<Element>(pair), own_guide[2 * i + 1], sum));
    }
#pragma unroll
    for (int mask = 16; mask > 0; mask /= 2) sum += shuffle_xor(sum, mask);
    const bool good = absolute(sum) < -kNegativeInfinity;
    finite = finite && good;
    // Not a number would have no place.
    if (lane_index() == 0) products[row] = good ? sum : kNegativeInfinity;
  }
  if (!finite && lane_index() == 0) {
    const int list = head / (args.num_q_heads / shape.num_lists());
    atomic_max(args.bad_row, ~static_cast<std::uint32_t>(list * shape.num_segments + segment));
  }
  sync_block(kGuideThreads);
  std::int32_t* const order = args.query_order + head * shape.seqlen + begin;
  for (int i = thread_index(); i < count; i += kGuideThreads) {
    const float own = products[i];
    int place = 0;
#pragma unroll 8
    for (int other = 0; other < count; ++other) {
      const float x = products[other];
      place += x > own || (x == own && other < i) ? 1 : 0;
    }
    order[place] = static_cast<std::int32_t>(begin + i);
  }
}

template <class Element, int kHeadDim>
struct SumSegmentsKernel {
  static constexpr const char* kName = "planning: sums of segments";
  static constexpr int kThreads = kGuideThreads;
  static constexpr int kMinBlocks = 0;
  static Grid grid(const QueryOrderArgs& args) {
    return {.blocks = std::int64_t{args.shape.num_segments} * args.num_sources(),
            .shared_bytes = sizeof(SharedGuideSums<kHeadDim>)};
  }
  S2O_DEVICE static void run(const QueryOrderArgs& args) { sum_segment<Element, kHeadDim>(args); }
};

template <int kHeadDim>
struct MakeGuidesKernel {
  static constexpr const char* kName = "planning: guides";
  static constexpr int kThreads = kHeadDim;
  static constexpr int kMinBlocks = 0;
  static Grid grid(const QueryOrderArgs& args) { return {.blocks = args.num_sources()}; }
  S2O_DEVICE static void run(const QueryOrderArgs& args) { make_guides<kHeadDim>(args); }
};

template <class Element, int kHeadDim>
struct OrderQueriesKernel {
  static constexpr const char* kName = "planning: order of queries";
  static constexpr int kThreads = kGuideThreads;
  static constexpr int kMinBlocks = 0;
  static Grid grid(const QueryOrderArgs& args) {
    return {.blocks = std::int64_t{args.shape.num_segments} * args.num_q_heads,
            .shared_bytes = sizeof(float) * static_cast<std::size_t>(args.shape.segment_size)};
  }
  S2O_DEVICE static void run(const QueryOrderArgs& args) { order_queries<Element, kHeadDim>(args); }
};

}  // namespace s2o::device
