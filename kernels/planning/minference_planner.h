// Planning of MInference on a device (definition: lib/methods/minference.cpp), at level A
// ("official" rounding).
#pragma once

#include <cstdint>
#include <memory>

#include "kernels/planning/tile_planner.h"

namespace s2o {

struct MinferenceDeviceSettings {
  std::int64_t num_columns = 512;     // kept tokens of a head, at most kMaxKeptColumns
  std::int64_t num_distances = 2048;  // kept distances of a head
  std::int64_t last_queries = 64;     // at most kLastQueries
  int sink_tokens = 30;               // first tokens, always kept
  int local_distances = 100;          // smallest distances, kept ahead of all others
  ItemRoom room;
};
// Every tile has room for all columns of its head.
inline constexpr std::int64_t kMaxKeptColumns = 8192;

// UnsupportedError when the settings cannot run on the problem.
std::unique_ptr<Planner> make_minference_planner(const Problem& problem,
                                                 const MinferenceDeviceSettings& settings,
                                                 std::int64_t l2_bytes);

}  // namespace s2o
