// Planning of `s2o_plus` with the ranking by all rows of a tile in low precision (definition:
// lib/methods/s2o/row_ranking.h). Host-safe.
#pragma once

#include <cstdint>
#include <memory>

#include "lib/planning/planner.h"

namespace s2o {

// A list has room for one of so many keys of a long history (HistoryShape::kept_fraction): a walk
// that ends at tau visits less.
constexpr int rows_kept_fraction(float tau) { return tau >= 0.002f ? 4 : tau >= 0.0005f ? 2 : 1; }
// As kListBytesPerToken, for lists that are shorter.
inline constexpr std::int64_t kRowOrderBytesPerToken = 512;

struct RowPlannerSettings {
  int block_n = 128;
  std::int64_t local_window = 128;  // tokens before a tile that are visited in place
  std::int32_t sink = 64;           // leading tokens that are always visited
  float floor = 0.0f;               // as in the definition; 0 ranks nothing and visits all keys
  int probe_stride = 32;            // as in the definition
  float local_limit = 0.0f;
  int kept_fraction = 4;
  std::int64_t order_bytes_per_token = kRowOrderBytesPerToken;
  StopRule stop;
  FoldRule fold;
};

// `l2_bytes` of the device orders the tiles.
std::unique_ptr<Planner> make_row_planner(const Problem& problem,
                                          const RowPlannerSettings& settings,
                                          std::int64_t l2_bytes);

}  // namespace s2o
