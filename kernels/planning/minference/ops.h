// Arguments of the kernels behind MInference (lib/methods/minference). All pointers are device
// pointers. Host-safe.
#pragma once

#include <cstdint>

#include "kernels/common/plan_view.h"

namespace s2o {

inline constexpr int kWindow = 64;  // query rows of a tile, keys of a window

// The heaviest entries of each head, the first `forced` ahead of all others, ties by lower index.
struct TopEntryArgs {
  const float* mass = nullptr;      // [num_heads, seqlen]
  std::int32_t* entries = nullptr;  // [num_heads, count], ascending or descending
  std::int64_t seqlen = 0;
  std::int32_t num_heads = 0;
  std::int32_t forced = 0;
  std::int32_t count = 0;  // at most seqlen
  bool descending = false;
};

// Items of tiles [first_tile, end_tile) of all heads: windows that the kept distances ask for, then
// the kept columns in none.
struct WindowArgs {
  const std::int32_t* distances = nullptr;  // [num_heads, num_distances], descending
  const std::int32_t* columns = nullptr;    // [num_heads, num_columns], ascending
  std::int64_t seqlen = 0;
  std::int32_t num_heads = 0;
  std::int32_t num_tiles = 0;  // of a head
  std::int32_t first_tile = 0;
  std::int32_t end_tile = 0;
  std::int32_t num_distances = 0;
  std::int32_t num_columns = 0;
  // The plan (plan_view.h).
  const std::int64_t* item_offsets = nullptr;
  PlanItem* items = nullptr;
  std::int32_t* item_counts = nullptr;
  std::int32_t* gather_indices = nullptr;  // [num_heads * num_tiles, num_columns]
};

// Most items of a tile: windows are disjoint and do not touch, one of them may change its mask
// class, and the columns.
inline std::int64_t max_window_items(std::int64_t tile, std::int64_t num_distances) {
  const std::int64_t windows = tile * kWindow / (kWindow + 1) + 1;
  return (windows < num_distances ? windows : num_distances) + 2;
}

}  // namespace s2o
