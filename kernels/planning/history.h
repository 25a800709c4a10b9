// The histories that S2O ranks: which keys each segment may visit beyond itself, and where the
// scores and orders of each lie in memory. Host-safe; the kernels read the same formulas.
//
// A list is a query head, or a KV head whose whole group shares one order. A row is the history of
// one segment of one list. Rows have their own offsets because histories grow with the segment.
#pragma once

#include <cstdint>
#include <vector>

#include "kernels/common/host_device.h"

namespace s2o {

struct HistoryShape {
  std::int64_t seqlen = 0;
  std::int64_t segment_size = 0;
  std::int64_t local_window = 0;  // tokens before a segment that are visited in place
  std::int64_t max_depth = 0;     // ranked keys kept of a history; 0 keeps all
  std::int32_t num_segments = 0;
  std::int32_t num_kv_heads = 0;
  std::int32_t lists_per_kv_head = 1;  // the group size, or 1 when the group shares its order

  S2O_ANYWHERE std::int32_t num_lists() const { return num_kv_heads * lists_per_kv_head; }
  // Keys [0, history_length) of the segment are ranked.
  S2O_ANYWHERE std::int64_t history_length(std::int64_t segment) const {
    const std::int64_t end = segment * segment_size - local_window;
    return end > 0 ? end : 0;
  }
  // Entries of the visiting order.
  S2O_ANYWHERE std::int64_t order_length(std::int64_t segment) const {
    const std::int64_t length = history_length(segment);
    return max_depth > 0 && length > max_depth ? max_depth : length;
  }
};

// The order of a row is a counting sort by rounded score in two stages. Stage one splits the row
// into kCoarseClasses: the sharp class, which holds the best keys, and equal shares of the rest.
// Stage two splits the sharp class into kFineClasses. Inside a class keys keep their order. With
// 16,384 sharp keys a fine class holds 64: less than a step of attention, so nothing finer matters.
inline constexpr int kCoarseClasses = 16;
inline constexpr int kDroppedClass = kCoarseClasses - 1;  // beyond order_length
inline constexpr int kFineClasses = 256;
inline constexpr int kRankBins = 4096;                 // equal steps between best and worst score
inline constexpr std::int64_t kMaxSharpDepth = 16384;  // what stage two holds in shared memory
inline constexpr std::int64_t kMinSharpDepth = 4096;

// Entries of an order that stage two may sort: an eighth of the history, which is as deep as a walk
// at 10 % density goes on average.
S2O_ANYWHERE inline std::int64_t sharp_depth(std::int64_t history_length,
                                             std::int64_t order_length) {
  std::int64_t depth = history_length / 8;
  if (depth < kMinSharpDepth) depth = kMinSharpDepth;
  if (depth > kMaxSharpDepth) depth = kMaxSharpDepth;
  return depth < order_length ? depth : order_length;
}

struct RankClass {
  std::uint32_t coarse;
  std::uint32_t fine;
};
// Class of the keys of a bin that covers entries [depth, end) of a row. Never falls with depth. A
// bin that does not fit the sharp class goes to the next. 32 bits: depths are below 2^24.
S2O_ANYWHERE inline RankClass rank_class(std::uint32_t depth, std::uint32_t end,
                                         std::uint32_t sharp, std::uint32_t order_length) {
  if (end <= sharp) return {0, depth * kFineClasses / sharp};
  if (depth >= order_length) return {kDroppedClass, 0};
  if (depth < sharp) return {1, 0};
  constexpr std::uint32_t kShares = kDroppedClass - 1;
  return {1 + (depth - sharp) * kShares / (order_length - sharp), 0};
}

}  // namespace s2o
