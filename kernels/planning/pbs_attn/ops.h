// Arguments of the operations behind PBS-Attn (lib/methods/pbs_attn). All pointers are device
// pointers. Host-safe.
#pragma once

#include <cstdint>

#include "kernels/planning/pooled/ops.h"

namespace s2o {

// Inside each complete segment of keys the tokens by descending mass, ties by lower token; the
// trailing partial segment in place.
struct SegmentOrderArgs {
  const float* mass = nullptr;         // [num_heads, num_keys]
  std::int32_t* order = nullptr;       // [num_heads, seqlen], slot -> token
  std::int32_t* sink_block = nullptr;  // [num_heads], the block of slots that holds token 0
  std::int64_t seqlen = 0;
  std::int64_t num_keys = 0;  // complete segments
  std::int32_t num_heads = 0;
  std::int32_t segment = 256;
  std::int32_t block = 128;
};
inline constexpr int kMaxOrderedSegment = 4096;  // ranked by counting: quadratic in the segment

struct PbsRowArgs {
  RowArgs rows;
  float threshold = 0.0f;  // share of a row's mass in earlier segments
  std::int32_t segment_blocks = 1;
  const std::int32_t* sink_block = nullptr;  // [num_heads]
};

}  // namespace s2o
