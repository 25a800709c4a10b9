// Arguments of the kernels that plan S2O. All pointers are device pointers. Host-safe; the CPU
// model of the tests uses the same structs.
#pragma once

#include <cstdint>

#include "kernels/planning/s2o/history.h"

namespace s2o {

// Means of the queries of a segment, scaled by softmax_scale.
struct MeanQueryArgs {
  const void* q = nullptr;  // [num_q_heads, seqlen, head_dim], 16-bit
  // Rows of segment s: s * lists_per_kv_head + list of the KV head.
  void* means = nullptr;  // [num_kv_heads, num_segments * lists_per_kv_head, head_dim], 16-bit
  HistoryShape shape;
  std::int32_t heads_per_list = 1;  // query heads whose queries are averaged
  float softmax_scale = 0.0f;
};

// Largest and smallest score of a row as ordered bits; the smallest complemented, so that zero is
// the neutral start of both maxima.
struct ScoreRange {
  std::uint32_t largest;
  std::uint32_t smallest_complement;
};

// Scores of the rows of some KV heads and segments ("a batch"), as fp16.
struct KeyScoreArgs {
  const void* means = nullptr;      // as in MeanQueryArgs
  const void* k = nullptr;          // [num_kv_heads, seqlen, head_dim], 16-bit
  std::uint16_t* scores = nullptr;  // [lists of the batch][scores_per_list]
  ScoreRange* ranges = nullptr;     // [num_lists, num_segments], zero at the start
  // Zero, or the complement of list * num_segments + segment of the first row with a score that is
  // not finite.
  std::uint32_t* bad_row = nullptr;
  const std::int64_t* score_offsets = nullptr;  // [num_segments], into a list, multiples of 64
  std::int64_t scores_per_list = 0;
  std::int64_t first_offset = 0;  // score_offsets[first_segment]
  HistoryShape shape;
  std::int32_t first_kv_head = 0;
  std::int32_t num_batch_kv_heads = 0;
  std::int32_t first_segment = 0;
  std::int32_t end_segment = 0;
  std::int32_t num_row_tiles = 0;   // of a KV head in the batch
  std::int32_t num_key_chunks = 0;  // chunks of kKeyChunk keys of the longest history
};
inline constexpr int kScoreRowTile = 64;
inline constexpr int kKeyChunk = 1024;

// Visiting order of the rows of a batch.
struct RankArgs {
  const std::uint16_t* scores = nullptr;  // as in KeyScoreArgs
  const ScoreRange* ranges = nullptr;
  const std::int64_t* score_offsets = nullptr;
  std::int64_t scores_per_list = 0;
  std::int64_t first_offset = 0;
  std::int32_t* order = nullptr;                // [num_lists, order_per_list], tokens
  const std::int64_t* order_offsets = nullptr;  // [num_segments], into a list
  std::int64_t order_per_list = 0;
  HistoryShape shape;
  std::int32_t first_list = 0;
  std::int32_t num_batch_lists = 0;
  std::int32_t first_segment = 0;
  std::int32_t end_segment = 0;
};

}  // namespace s2o
