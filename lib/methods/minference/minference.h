// Settings, selection rules and device planner of MInference (definition: minference.cpp).
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "lib/planning/tile_planner.h"

namespace s2o {

inline constexpr int kMinferenceTile = 64;  // query rows of a tile, keys of a window

inline constexpr int kMinferenceSinkTokens = 30;       // first tokens, always kept
inline constexpr int kMinferenceLocalDistances = 100;  // smallest distances, kept before others

struct MinferenceSettings {
  std::int64_t num_columns;    // kept tokens of a head
  std::int64_t num_distances;  // kept distances of a head
  std::int64_t last_queries;   // that estimate
};

// Whether the kernels of kernels/planning/minference can hold so many columns and queries.
bool minference_plans_on_device(const MinferenceSettings& settings);
std::unique_ptr<Planner> minference_planner(const Problem& problem,
                                            const MinferenceSettings& settings,
                                            const PlannerLimits& limits);

// Tokens kept as columns, ascending: the first 30 and the heaviest others, `count` in all.
// mass [seqlen]
std::vector<std::int32_t> minference_columns(std::span<const float> mass, std::int64_t count);

// Distances query - key kept, DESCENDING: the 100 smallest and the heaviest others, `count` in all.
// mass [seqlen], by distance
std::vector<std::int32_t> minference_distances(std::span<const float> mass, std::int64_t count);

// What one tile of query rows [begin, begin + 64) visits.
struct MinferenceTile {
  struct Range {
    std::int64_t begin = 0;  // any token
    std::int64_t end = 0;    // exclusive; end - begin is a multiple of 64; may exceed the tile
  };
  std::vector<Range> ranges;          // ascending, disjoint
  std::vector<std::int32_t> columns;  // ascending, all before the tile, in no range
};
MinferenceTile minference_tile(std::int64_t begin, std::span<const std::int32_t> distances,
                               std::span<const std::int32_t> columns);

}  // namespace s2o
