// Radii of key blocks around their means, and the lifts of RBS that derive from them
// (ops.h, lib/methods/rbs).
#pragma once

#include "kernels/device/layout.cuh"
#include "kernels/planning/block_energy/ops.h"
#include "kernels/planning/launch.cuh"
#include "kernels/planning/shared/platform_planning.cuh"

namespace s2o::device {

inline constexpr int kRadiusThreads = 128;

template <int kHeadDim>
struct SharedRadius {
  float sums[kRadiusThreads / (kHeadDim / kChunkElements)][kHeadDim];
  float mean[kHeadDim];
  float warp_largest[kRadiusThreads / 32];
};

// Radius of one complete block of keys; blocks of kEnergyBlock keys, one block of threads each.
template <class Element, int kHeadDim>
S2O_DEVICE void block_radius(const BlockRadiusArgs& args) {
  constexpr int kChunks = kHeadDim / kChunkElements;
  constexpr int kGroups = kRadiusThreads / kChunks;
  constexpr int kRows = kEnergyBlock / kGroups;
  auto& shared = *reinterpret_cast<SharedRadius<kHeadDim>*>(shared_memory());
  const int block = block_index() % args.num_blocks;
  const std::int64_t head = block_index() / args.num_blocks;
  if (static_cast<std::int64_t>(block + 1) * kEnergyBlock > args.seqlen) return;
  const int chunk = thread_index() % kChunks;
  const int group = thread_index() / kChunks;
  const auto* rows =
      static_cast<const std::uint16_t*>(args.k) +
      (head * args.seqlen + static_cast<std::int64_t>(block) * kEnergyBlock) * kHeadDim +
      chunk * kChunkElements;
  float sum[kChunkElements];
#pragma unroll
  for (int e = 0; e < kChunkElements; ++e) sum[e] = 0.0f;
#pragma unroll 4
  for (int r = 0; r < kRows; ++r) {
    const Words4 words = load_global_16(rows + (group + r * kGroups) * kHeadDim);
#pragma unroll
    for (int e = 0; e < kChunkElements; ++e) {
      sum[e] += e % 2 == 0 ? unpack_low<Element>(words.word[e / 2])
                           : unpack_high<Element>(words.word[e / 2]);
    }
  }
#pragma unroll
  for (int e = 0; e < kChunkElements; ++e) shared.sums[group][chunk * kChunkElements + e] = sum[e];
  sync_block(kRadiusThreads);
  if (thread_index() < kHeadDim) {
    float total = 0.0f;
#pragma unroll 4
    for (int g = 0; g < kGroups; ++g) total += shared.sums[g][thread_index()];
    shared.mean[thread_index()] = divide(total, static_cast<float>(kEnergyBlock));
  }
  sync_block(kRadiusThreads);
  float largest = 0.0f;
#pragma unroll 4
  for (int r = 0; r < kRows; ++r) {
    const Words4 words = load_global_16(rows + (group + r * kGroups) * kHeadDim);
    float square = 0.0f;
#pragma unroll
    for (int e = 0; e < kChunkElements; ++e) {
      const float x = e % 2 == 0 ? unpack_low<Element>(words.word[e / 2])
                                 : unpack_high<Element>(words.word[e / 2]);
      const float deviation = x - shared.mean[chunk * kChunkElements + e];
      square = fused(deviation, deviation, square);
    }
#pragma unroll
    for (int mask = 1; mask < kChunks; mask *= 2) square += shuffle_xor(square, mask);
    largest = max_of(largest, square);
  }
#pragma unroll
  for (int mask = 16; mask > 0; mask /= 2) largest = max_of(largest, shuffle_xor(largest, mask));
  if (lane_index() == 0) shared.warp_largest[warp_index()] = largest;
  sync_block(kRadiusThreads);
  if (thread_index() != 0) return;
  for (int warp = 0; warp < kRadiusThreads / 32; ++warp) {
    largest = max_of(largest, shared.warp_largest[warp]);
  }
  args.radii[head * args.num_blocks + block] = square_root(largest);
}

inline constexpr int kLiftThreads = 1024;

// Lifts of one KV head, one block of threads: quantiles by counting, then r * beta.
// Shared memory: the radii of the head, then four order statistics.
S2O_DEVICE void radius_lifts_head(const BlockRadiusArgs& args) {
  auto* const radii = reinterpret_cast<float*>(shared_memory());
  float* const statistics = radii + args.num_blocks;  // at places: median low, high; p90 low, high
  const std::int64_t head = block_index();
  const int complete = static_cast<int>(args.seqlen / kEnergyBlock);
  for (int b = thread_index(); b < complete; b += kLiftThreads) {
    radii[b] = args.radii[head * args.num_blocks + b];
  }
  sync_block(kLiftThreads);
  const double median_place = 0.5 * (complete - 1);
  const double high_place = 0.9 * (complete - 1);
  const int places[4] = {
      static_cast<int>(median_place), min_of(static_cast<int>(median_place) + 1, complete - 1),
      static_cast<int>(high_place), min_of(static_cast<int>(high_place) + 1, complete - 1)};
  for (int b = thread_index(); b < complete; b += kLiftThreads) {
    const float own = radii[b];
    int rank = 0;
    for (int other = 0; other < complete; ++other) {
      const float radius = radii[other];
      rank += radius < own || (radius == own && other < b) ? 1 : 0;
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if (rank == places[i]) statistics[i] = own;
    }
  }
  sync_block(kLiftThreads);
  const auto median_share = static_cast<float>(median_place - places[0]);
  const auto high_share = static_cast<float>(high_place - places[2]);
  for (int b = thread_index(); b < args.num_blocks; b += kLiftThreads) {
    float lift = 0.0f;
    if (b < complete) {
      const float low = statistics[0] + median_share * (statistics[1] - statistics[0]);
      const float high = statistics[2] + high_share * (statistics[3] - statistics[2]);
      const float radius = radii[b];
      const float raw =
          high > low ? divide(radius - low, high - low) : (radius > low ? 1.0f : 0.0f);
      lift = radius * max_of(min_of(raw, 1.0f), 0.0f);
    }
    args.lifts[head * args.num_blocks + b] = lift;
  }
}

template <class Element, int kHeadDim>
struct BlockRadiusKernel {
  static constexpr const char* kName = "planning: radii";
  static constexpr int kThreads = kRadiusThreads;
  static constexpr int kMinBlocks = 0;
  static Grid grid(const BlockRadiusArgs& args) {
    return {.blocks = std::int64_t{args.num_kv_heads} * args.num_blocks,
            .shared_bytes = sizeof(SharedRadius<kHeadDim>)};
  }
  S2O_DEVICE static void run(const BlockRadiusArgs& args) { block_radius<Element, kHeadDim>(args); }
};

struct RadiusLiftsKernel {
  static constexpr const char* kName = "planning: lifts";
  static constexpr int kThreads = kLiftThreads;
  static constexpr int kMinBlocks = 0;
  static Grid grid(const BlockRadiusArgs& args) {
    return {.blocks = args.num_kv_heads,
            .shared_bytes = sizeof(float) * (static_cast<std::size_t>(args.num_blocks) + 4)};
  }
  S2O_DEVICE static void run(const BlockRadiusArgs& args) { radius_lifts_head(args); }
};

}  // namespace s2o::device
