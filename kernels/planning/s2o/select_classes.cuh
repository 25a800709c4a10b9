// From classes of keys, a byte each, to visiting orders: what the kernels that rank by classes
// share (row_ops.h). Class 0 is dropped; others go to the order best class first, then by token.
// Deterministic: places depend on classes and keys only.
#pragma once

#include "kernels/planning/s2o/row_ops.h"
#include "kernels/planning/shared/platform_planning.cuh"

// A call: inlined in a kernel that has few predicates left, the assembler gives up.
#if defined(__CUDACC__)
#define S2O_SELECT static __device__ __noinline__
#else
#define S2O_SELECT inline
#endif

namespace s2o::device {

inline constexpr int kScanKeys = 512;  // of a warp at a time
static_assert(kScanKeys == 1 << 9 && kRowClasses <= 1 << 7);
inline constexpr int kPlacingThreads = kRowClasses;  // whole warpgroups

// Of one list, whose keys lie in consecutive ranges.
template <int kRanges>
struct ClassCounts {
  alignas(16) std::uint32_t counts[kRanges][kRowClasses];  // then next places in the order
  std::uint32_t warp_sums[kPlacingThreads / 32];
};

// From counts to the places where each range's keys of each class begin, best class first, then by
// range. Returns the number of all. A warpgroup; sync() is a barrier of it.
template <int kRanges, class Sync>
S2O_DEVICE int place_classes(ClassCounts<kRanges>& list, const Sync& sync) {
  const int c = kRowClasses - 1 - thread_index() % kPlacingThreads;
  const int own_warp = warp_index() % (kPlacingThreads / 32);
  std::uint32_t own = 0;
#pragma unroll
  for (int r = 0; r < kRanges; ++r) own += list.counts[r][c];
  const std::uint32_t inclusive = warp_prefix_sum(own);
  if (lane_index() == 31) list.warp_sums[own_warp] = inclusive;
  sync();
  std::uint32_t total = 0;
  std::uint32_t before = 0;
#pragma unroll
  for (int w = 0; w < kPlacingThreads / 32; ++w) {
    if (w == own_warp) before = total;
    total += list.warp_sums[w];
  }
  std::uint32_t place = before + inclusive - own;
#pragma unroll
  for (int r = 0; r < kRanges; ++r) {
    const std::uint32_t count = list.counts[r][c];
    list.counts[r][c] = place;
    place += count;
  }
  sync();
  return static_cast<int>(total);
}

// A warp's scan of keys [first, first + kScanKeys) that end before `end`, 16 a lane.
// NOTE: no read-only path: the block itself has written them.
S2O_DEVICE Words4 load_classes(const unsigned char* classes, int first, int end) {
  const int key = first + lane_index() * 16;
  if (key >= end) return Words4{};
  return load_written_16(classes + key);
}

// Puts the keys of the scan that have a class into `staged`, ascending, as class << 9 | key of the
// scan; their number.
S2O_DEVICE int stage_classes(const Words4& words, std::uint16_t* staged) {
  std::uint32_t ranked[4];
  int own = 0;
#pragma unroll
  for (int w = 0; w < 4; ++w) {
    ranked[w] = (words.word[w] + 0x7f7f7f7fu) & 0x80808080u;  // bytes that are not 0
    own += count_bits(ranked[w]);
  }
  if (!any_lane(own > 0)) return 0;
  const int inclusive = warp_prefix_sum(own);
  int place = inclusive - own;
#pragma unroll
  for (int w = 0; w < 4; ++w) {
    for (std::uint32_t left = ranked[w]; left != 0; left &= left - 1) {
      const int byte = lowest_bit(left) / 8;
      const std::uint32_t c = words.word[w] >> 8 * byte & 0xffu;
      const int key = lane_index() * 16 + w * 4 + byte;
      staged[place++] = static_cast<std::uint16_t>(c << 9 | static_cast<std::uint32_t>(key));
    }
  }
  return shuffle_from(inclusive, 31);
}

// Keys [begin, end) of the list, multiples of 16 but for padding without a class, by one warp:
// those that have a class go to the order, which has room for so many, at the places of their
// range. Behind the leading groups `skipped` tokens have no place in the list.
S2O_SELECT void write_range(const unsigned char* classes, int begin, int end, int skipped,
                            std::uint32_t* places, std::uint16_t* staged, std::int32_t* order,
                            int room) {
  Words4 ahead = load_classes(classes, begin, end);
  for (int first = begin; first < end; first += kScanKeys) {
    const Words4 words = ahead;
    ahead = load_classes(classes, first + kScanKeys, end);
    const int count = stage_classes(words, staged);
    if (count == 0) continue;
    sync_warp();  // all have staged
    for (int i = lane_index(); i < ceil_div(count, 32) * 32; i += 32) {
      const bool exists = i < count;
      const std::uint32_t entry = exists ? staged[i] : 0u;
      const std::uint32_t c = entry >> 9;  // 0: nothing
      const std::uint32_t peers = matching_lanes<7>(c);
      const std::uint32_t place = places[c];
      sync_warp();  // every lane has read the place
      const int lower = count_bits(peers & ((1u << lane_index()) - 1u));
      const int target = static_cast<int>(place) + lower;
      if (exists && lower == 0) places[c] = place + static_cast<std::uint32_t>(count_bits(peers));
      if (exists && target < room) {
        const int key = first + static_cast<std::int32_t>(entry & (kScanKeys - 1));
        order[target] = key < kLeadingGroups * kKeyGroup ? key : key + skipped;
      }
      sync_warp();
    }
  }
  sync_warp();
}

}  // namespace s2o::device

#undef S2O_SELECT
