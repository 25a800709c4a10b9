// Keys of each segment by descending mass (SegmentOrderArgs in ops.h), one block of threads a
// segment.
#pragma once

#include "kernels/planning/launch.cuh"
#include "kernels/planning/pbs_attn/ops.h"
#include "kernels/planning/shared/platform_planning.cuh"

namespace s2o::device {

inline constexpr int kSegmentOrderThreads = 256;

// One block of threads a head and segment; the last, partial segment keeps its order.
S2O_DEVICE void order_segment(const SegmentOrderArgs& args) {
  auto* const mass = reinterpret_cast<float*>(shared_memory());
  const std::int64_t segments = (args.seqlen + args.segment - 1) / args.segment;
  const std::int64_t head = block_index() / segments;
  const std::int64_t begin = block_index() % segments * args.segment;
  std::int32_t* const order = args.order + head * args.seqlen + begin;
  const std::int64_t left = args.seqlen - begin;
  const int count = left < args.segment ? static_cast<int>(left) : args.segment;
  if (begin >= args.num_keys) {
    for (int i = thread_index(); i < count; i += kSegmentOrderThreads) {
      order[i] = static_cast<std::int32_t>(begin + i);
    }
    return;
  }
  for (int i = thread_index(); i < count; i += kSegmentOrderThreads) {
    const float own = args.mass[head * args.num_keys + begin + i];
    mass[i] = own >= 0.0f ? own : -1.0f;  // not a number would have no place
  }
  sync_block(kSegmentOrderThreads);
  for (int i = thread_index(); i < count; i += kSegmentOrderThreads) {
    const float own = mass[i];
    int rank = 0;
#pragma unroll 8
    for (int other = 0; other < count; ++other) {
      const float x = mass[other];
      rank += x > own || (x == own && other < i) ? 1 : 0;
    }
    order[rank] = static_cast<std::int32_t>(begin + i);
    if (begin + i == 0) args.sink_block[head] = rank / args.block;
  }
}

struct OrderSegmentsKernel {
  static constexpr const char* kName = "planning: order of segments";
  static constexpr int kThreads = kSegmentOrderThreads;
  static constexpr int kMinBlocks = 0;
  static Grid grid(const SegmentOrderArgs& args) {
    return {.blocks = args.num_heads * ((args.seqlen + args.segment - 1) / args.segment),
            .shared_bytes = sizeof(float) * static_cast<std::size_t>(args.segment)};
  }
  S2O_DEVICE static void run(const SegmentOrderArgs& args) { order_segment(args); }
};

}  // namespace s2o::device
