// Selection rules of MInference (lib/methods/minference.cpp), exposed for tests and the GPU
// planner.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace s2o {

inline constexpr int kMinferenceTile = 64;  // query rows of a tile, keys of a window

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
