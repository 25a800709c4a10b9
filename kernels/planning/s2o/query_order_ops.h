// Arguments of the kernels that order the queries of S2O's segments by a guide vector
// (lib/methods/s2o/s2o_plan_cpu.cpp, step 1). All pointers are device pointers. Host-safe.
#pragma once

#include <cstdint>

#include "kernels/planning/s2o/history.h"

namespace s2o {

enum class QueryGuide : std::uint8_t {
  kNone,              // queries keep their order
  kPrefixMeanKey,     // mean of the keys up to the end of the segment
  kGlobalMeanKey,     // mean of all keys
  kSegmentMeanQuery,  // mean of the segment's own queries
};

struct QueryOrderArgs {
  const void* q = nullptr;  // [num_q_heads, seqlen, head_dim], 16-bit
  const void* k = nullptr;  // [num_kv_heads, seqlen, head_dim], 16-bit
  // Sums of keys (of queries for kSegmentMeanQuery) per segment, then guides,
  // [num_sources, num_segments, head_dim].
  float* guides = nullptr;
  std::int32_t* query_order = nullptr;  // [num_q_heads, seqlen], row slot -> token
  // Zero, or the complement of list * num_segments + segment of a row with a product that is not
  // finite.
  std::uint32_t* bad_row = nullptr;
  HistoryShape shape;
  std::int32_t num_q_heads = 0;
  std::int32_t group_size = 1;
  QueryGuide kind = QueryGuide::kNone;

  S2O_ANYWHERE std::int32_t num_sources() const {
    return kind == QueryGuide::kSegmentMeanQuery ? num_q_heads : num_q_heads / group_size;
  }
};
inline constexpr std::int64_t kMaxGuidedSegment = 4096;  // ranked by counting: quadratic

}  // namespace s2o
