// Arguments of the kernels behind methods that select blocks of keys for blocks of queries. All
// pointers are device pointers. Host-safe.
//
// Blocks of queries and keys are numbered from the start of the sequence; the last may be short.
// "r" is the rounding to the type of q.
#pragma once

#include <cstdint>

#include "kernels/common/plan_view.h"

namespace s2o {

// Means of consecutive blocks of rows: fp32 sums, r once.
struct PoolArgs {
  const void* x = nullptr;  // [num_heads / heads_per_source, seqlen, head_dim], 16-bit
  void* means = nullptr;    // [num_heads, num_blocks, head_dim], 16-bit
  std::int64_t seqlen = 0;
  std::int32_t block = 128;
  std::int32_t num_blocks = 0;
  std::int32_t num_heads = 0;
  std::int32_t heads_per_source = 1;  // heads that read one head of x, each in its own order
  bool divide_by_block = false;       // a short block counts missing rows as zeros
  // [num_heads, seqlen]: slot -> token of x; may be null.
  const std::int32_t* order = nullptr;
  // SpargeAttn. Subtracted from every row, then r; [num_heads, head_dim], 16-bit; may be null.
  const void* offset = nullptr;
  // Whether the mean cosine of all pairs of rows exceeds the threshold; 0 for a short block.
  // [num_heads, num_blocks]; may be null.
  std::uint8_t* similar = nullptr;
  float similarity_threshold = 0.0f;
};

// A[i, j] = r(r(q_i . k_j) * scale) of mean queries and mean keys.
struct BlockScoreArgs {
  const void* q = nullptr;  // [num_heads, num_q_blocks, head_dim], 16-bit
  const void* k = nullptr;  // [num_heads / heads_per_k, num_kv_blocks, head_dim], 16-bit
  // [num_heads, num_rows, row_stride], 16-bit: rows first_row .. first_row + num_rows
  std::uint16_t* scores = nullptr;
  std::int32_t num_heads = 0;
  std::int32_t heads_per_k = 1;
  std::int32_t num_q_blocks = 0;
  std::int32_t num_kv_blocks = 0;
  std::int32_t first_row = 0;
  std::int32_t num_rows = 0;
  std::int32_t row_stride = 0;  // a multiple of 64, at least num_kv_blocks
  // Blocks with no causal pair are not computed: those at or beyond
  // ceil((row + 1) * block_m / block_n).
  std::int32_t block_m = 128;
  std::int32_t block_n = 128;
  float scale = 0.0f;
};

// Rows whose scores become the items of their tiles: what the selection rules of all methods share.
// Their own arguments hold it as `rows` (select_rows.cuh).
struct RowArgs {
  const std::uint16_t* scores = nullptr;  // as in BlockScoreArgs
  std::int32_t num_heads = 0;
  std::int32_t num_q_blocks = 0;
  std::int32_t num_kv_blocks = 0;
  std::int32_t first_row = 0;
  std::int32_t num_rows = 0;
  std::int32_t row_stride = 0;
  std::int32_t block_m = 128;
  std::int32_t block_n = 128;
  std::int64_t seqlen = 0;
  // The plan (plan_view.h).
  const std::int64_t* item_offsets = nullptr;
  PlanItem* items = nullptr;
  std::int32_t* item_counts = nullptr;
  // Zero, or the complement of head * num_q_blocks + row of a row with a score that is not finite.
  std::uint32_t* bad_row = nullptr;
};

// Most items that the selection of a tile can need: every other block, once more where the mask
// class changes, and the own segment.
inline std::int64_t max_items_of_row(std::int64_t num_kv_blocks) { return num_kv_blocks / 2 + 3; }

}  // namespace s2o
