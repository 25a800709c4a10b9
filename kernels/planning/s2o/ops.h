// Arguments of the kernels that plan S2O. All pointers are device pointers. Host-safe; the CPU
// model of the tests uses the same structs.
#pragma once

#include <cstdint>

#include "kernels/common/plan_view.h"
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

// Scores of the rows of a batch, as fp16.
struct KeyScoreArgs {
  const void* means = nullptr;      // as in MeanQueryArgs
  const void* k = nullptr;          // [num_kv_heads, seqlen, head_dim], 16-bit
  std::uint16_t* scores = nullptr;  // [lists of the batch][batch.keys_per_list]
  ScoreRange* ranges = nullptr;     // [num_lists, num_segments], zero at the start
  // Zero, or the complement of list * num_segments + segment of the first row with a score that is
  // not finite.
  std::uint32_t* bad_row = nullptr;
  const std::int64_t* row_offsets = nullptr;  // [num_segments], into a list, multiples of 64
  HistoryShape shape;
  RowBatch batch;
};
inline constexpr int kScoreRowTile = 64;
inline constexpr int kKeyChunk = 1024;

// Visiting order of the rows of a batch.
struct RankArgs {
  const std::uint16_t* scores = nullptr;  // as in KeyScoreArgs
  const ScoreRange* ranges = nullptr;
  const std::int64_t* row_offsets = nullptr;
  std::int32_t* order = nullptr;                // [num_lists, order_per_list], tokens
  const std::int64_t* order_offsets = nullptr;  // [num_segments], into a list
  std::int64_t order_per_list = 0;
  HistoryShape shape;
  RowBatch batch;
};

// Where orders list a part of their histories, no scores leave the product but classes, a byte
// each: equal steps of score, for what is of equal weight to a step of attention needs no order.
// Class 0 is not listed, others best class first, within in an order that depends on nothing but
// tokens.
inline constexpr std::int64_t kClassOrderRoom = 16384;  // entries of one order
inline constexpr std::int64_t kClassOrderHistory = std::int64_t{1} << 18;
inline constexpr int kMeanClasses = 128;
// The class of a score is round(score * scale + shift), at least `lowest` and below kMeanClasses.
struct MeanCut {
  float scale, shift;
  std::uint32_t lowest;  // 0 or 1
};

// The classes of each row, from a sample of its scores: the sample's best is kMeanClasses - 2, and
// class 1 the worst, or where kCutAim of what the order has room for is better: a sample is off by
// a tenth, and what the order has no room for was found in vain.
inline constexpr float kCutAim = 0.9f;
inline constexpr int kCutRows = 16;  // that follow each other, sampled alike
inline constexpr int kCutSamples = 1024;
// Keys sampled_key(i, stride) (row_ops.h) of the rows with this one.
S2O_ANYWHERE inline std::int64_t cut_sample_stride(const HistoryShape& shape, int row) {
  const int num_rows = shape.num_segments * shape.lists_per_kv_head;
  const int end = (row / kCutRows + 1) * kCutRows;
  const int last = (end < num_rows ? end : num_rows) - 1;
  return (shape.history_length(last / shape.lists_per_kv_head) + kCutSamples - 1) / kCutSamples;
}
struct MeanCutArgs {
  const void* means = nullptr;  // as in MeanQueryArgs
  const void* k = nullptr;      // [num_kv_heads, seqlen, head_dim], 16-bit
  MeanCut* cuts = nullptr;      // [num_lists, num_segments]
  HistoryShape shape;
};

// Classes of the rows of a batch. Bytes of kStoredBlock keys lie as the product leaves them: key
// 8 j + 2 q + i, j < 8, q < 4, i < 2, is byte 16 q + 2 j + i.
inline constexpr int kStoredBlock = 64;
S2O_ANYWHERE constexpr std::uint32_t key_of_stored(std::uint32_t byte) {
  return (byte & ~63u) | (byte >> 1 & 7u) << 3 | (byte >> 4 & 3u) << 1 | (byte & 1u);
}
struct MeanClassArgs {
  const void* means = nullptr;       // as in MeanQueryArgs
  const void* k = nullptr;           // [num_kv_heads, seqlen, head_dim], 16-bit
  const MeanCut* cuts = nullptr;     // as in MeanCutArgs
  unsigned char* classes = nullptr;  // [lists of the batch][batch.keys_per_list]
  // Zero, or the complement of list * num_segments + segment of the first row with a score that is
  // not finite, or not in fp16.
  std::uint32_t* bad_row = nullptr;
  const std::int64_t* row_offsets = nullptr;  // [num_segments], into a list, multiples of 64
  HistoryShape shape;
  RowBatch batch;
};

// Visiting order of the rows of a batch.
struct ClassOrderArgs {
  const unsigned char* classes = nullptr;  // as in MeanClassArgs
  const std::int64_t* row_offsets = nullptr;
  std::int32_t* order = nullptr;                // [num_lists, order_per_list], tokens
  const std::int64_t* order_offsets = nullptr;  // [num_segments], into a list
  std::int64_t order_per_list = 0;
  // The last item of each tile of items [heads, num_tiles] learns how many keys there are.
  PlanItem* items = nullptr;
  const std::int64_t* item_offsets = nullptr;  // [heads * num_tiles + 1]
  std::int32_t num_tiles = 0;
  std::int32_t tiles_per_segment = 1;
  std::int32_t heads_per_list = 1;
  HistoryShape shape;
  RowBatch batch;
};

}  // namespace s2o
