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

inline constexpr std::int64_t kKeptWhole = 4096;  // keys

struct HistoryShape {
  std::int64_t seqlen = 0;
  std::int64_t segment_size = 0;
  std::int64_t local_window = 0;  // tokens before a segment that are visited in place
  std::int64_t max_depth = 0;     // ranked keys kept of a history; 0 keeps all
  // One of so many is kept of a history longer than kKeptWhole, of others at most so many; 0 and 1
  // keep all.
  std::int32_t kept_fraction = 0;
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
    if (kept_fraction > 1 && length > kKeptWhole) {
      return length / kept_fraction > kKeptWhole ? length / kept_fraction : kKeptWhole;
    }
    return max_depth > 0 && length > max_depth ? max_depth : length;
  }
};

// Rows that are ranked together: segments [first_segment, end_segment) of all lists of some KV
// heads. What a product finds of their keys, scores or classes, lies list after list, each row at
// its own offset into a list.
struct RowBatch {
  std::int32_t first_kv_head = 0;
  std::int32_t num_kv_heads = 0;
  std::int32_t first_segment = 0;
  std::int32_t end_segment = 0;
  std::int64_t first_offset = 0;   // of first_segment
  std::int64_t keys_per_list = 0;  // with the padding of rows

  S2O_ANYWHERE std::int32_t num_rows(const HistoryShape& shape) const {
    return num_kv_heads * shape.lists_per_kv_head * (end_segment - first_segment);
  }
  // Row of a block, the longest first.
  struct Row {
    std::int32_t list, segment;
  };
  S2O_ANYWHERE Row row(const HistoryShape& shape, std::int32_t block) const {
    const std::int32_t num_lists = num_kv_heads * shape.lists_per_kv_head;
    return {first_kv_head * shape.lists_per_kv_head + block % num_lists,
            end_segment - 1 - block / num_lists};
  }
  // Where a row of the list begins whose offset this is.
  S2O_ANYWHERE std::int64_t place(const HistoryShape& shape, std::int32_t list,
                                  std::int64_t offset) const {
    return (list - first_kv_head * shape.lists_per_kv_head) * keys_per_list + offset - first_offset;
  }

  // Of the rows of a KV head, and of the keys of its longest history.
  S2O_ANYWHERE std::int32_t num_row_tiles(const HistoryShape& shape, std::int32_t row_tile) const {
    return ((end_segment - first_segment) * shape.lists_per_kv_head + row_tile - 1) / row_tile;
  }
  S2O_ANYWHERE std::int32_t num_key_chunks(const HistoryShape& shape, std::int32_t chunk) const {
    return static_cast<std::int32_t>((shape.history_length(end_segment - 1) + chunk - 1) / chunk);
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

// From depths to classes, told by one number: of a key in the sharp class its fine class, else
// kFineClasses plus its coarse class. Depths are below 2^24: exact in fp32.
struct RankClasses {
  std::uint32_t sharp;
  float fine_scale;                     // fine classes per entry
  std::uint32_t begins[kDroppedClass];  // depths at which classes 1 to kDroppedClass begin

  S2O_ANYWHERE RankClasses(std::uint32_t sharp_entries, std::uint32_t order_length)
      : sharp(sharp_entries),
        fine_scale(static_cast<float>(kFineClasses) / static_cast<float>(sharp_entries)) {
    // At equal ratios of depth when the sharp class is an eighth of all.
    constexpr std::uint32_t kShares[kDroppedClass] = {0, 15, 37, 67, 110, 170, 256};
    for (int i = 0; i < kDroppedClass; ++i) {
      begins[i] = sharp + (kShares[i] * (order_length - sharp) + 255) / 256;
    }
  }
  // Class of the keys of a bin that covers entries [depth, end) of a row. Never falls with depth. A
  // bin that does not fit the sharp class goes to the next.
  S2O_ANYWHERE std::uint32_t operator()(std::uint32_t depth, std::uint32_t end) const {
    const auto fine = static_cast<std::uint32_t>(static_cast<float>(depth) * fine_scale);
    std::uint32_t rest = kFineClasses + 1;
    for (int i = 1; i < kDroppedClass; ++i) rest += depth >= begins[i] ? 1 : 0;
    return end <= sharp ? fine : rest;
  }
};

}  // namespace s2o
