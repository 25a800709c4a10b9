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
// into kCoarseClasses: the sharp class, which holds the best keys, and shares of the rest that grow
// with their depth. Stage two splits the sharp class into kFineClasses. Inside a class keys keep
// their order. With 16,384 sharp keys a fine class holds 66: less than a step of attention, so
// nothing finer matters.
inline constexpr int kCoarseClasses = 8;
inline constexpr int kDroppedClass = kCoarseClasses - 1;   // beyond order_length
inline constexpr int kFineClasses = 256 - kCoarseClasses;  // a byte tells a class of either kind
inline constexpr std::uint32_t kShareUnit = 256;
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

// Where classes 1 to kDroppedClass begin, in units of 1 / kShareUnit of the entries beyond the
// sharp class: at equal ratios of depth when the sharp class is an eighth of all.
S2O_ANYWHERE constexpr std::uint32_t share_begin(std::uint32_t c) {
  constexpr std::uint32_t kBegins[kDroppedClass] = {0, 15, 37, 67, 110, 170, kShareUnit};
  return kBegins[c - 1];
}

// Class of a share below kShareUnit.
S2O_ANYWHERE constexpr std::uint32_t share_class(std::uint32_t share) {
  std::uint32_t c = 1;
  for (std::uint32_t next = 2; next < kDroppedClass; ++next)
    c += share >= share_begin(next) ? 1 : 0;
  return c;
}

// From depths to classes, told by one number: of a key in the sharp class its fine class, else
// kFineClasses plus its coarse class.
struct RankClasses {
  std::uint32_t sharp;
  std::uint32_t order_length;
  float fine_scale;   // fine classes per entry
  float share_scale;  // shares per entry beyond the sharp class

  S2O_ANYWHERE RankClasses(std::uint32_t sharp_entries, std::uint32_t order_entries)
      : sharp(sharp_entries),
        order_length(order_entries),
        fine_scale(static_cast<float>(kFineClasses) / static_cast<float>(sharp)),
        share_scale(static_cast<float>(kShareUnit) / static_cast<float>(order_length - sharp)) {}

  // Class of the keys of a bin that covers entries [depth, end) of a row. Never falls with depth. A
  // bin that does not fit the sharp class goes to the next. Depths are below 2^24, exact in fp32.
  S2O_ANYWHERE std::uint32_t operator()(std::uint32_t depth, std::uint32_t end) const {
    if (end <= sharp) {
      return static_cast<std::uint32_t>(static_cast<float>(depth) * fine_scale);
    }
    if (depth >= order_length) return kFineClasses + kDroppedClass;
    if (depth < sharp) return kFineClasses + 1;
    return kFineClasses +
           share_class(static_cast<std::uint32_t>(static_cast<float>(depth - sharp) * share_scale));
  }
};

}  // namespace s2o
