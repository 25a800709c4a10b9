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

// Ranking sorts into classes of equal rank, best first; inside a class keys keep their order. The
// classes of the first `sharp` entries hold about sharp / kSharpClasses keys each, those of the
// rest share what is left evenly.
inline constexpr int kRankClasses = 256;
inline constexpr int kSharpClasses = 192;
inline constexpr int kDroppedClass = kRankClasses - 1;  // beyond order_length
inline constexpr int kRankBins = 4096;                  // equal steps between best and worst score

// Class of the keys of a bin that starts at `depth` of a row. Never falls with depth.
S2O_ANYWHERE inline int rank_class(std::int64_t depth, std::int64_t order_length,
                                   std::int64_t sharp_depth) {
  if (depth >= order_length) return kDroppedClass;
  const std::int64_t sharp = sharp_depth < order_length ? sharp_depth : order_length;
  if (depth < sharp) return static_cast<int>(depth * kSharpClasses / sharp);
  constexpr int kBlunt = kDroppedClass - kSharpClasses;
  return kSharpClasses + static_cast<int>((depth - sharp) * kBlunt / (order_length - sharp));
}

}  // namespace s2o
