// Arguments of the kernels behind FlexPrefill (lib/methods/flexprefill). All pointers are
// device pointers. Host-safe. Heads are query heads, blocks are of `block` tokens.
#pragma once

#include <cstdint>

#include "kernels/common/plan_view.h"

namespace s2o {

// Which entries of all rows of a head are kept: those above `value`, and of its ties as many per
// row as row_ties says.
struct FlexCut {
  std::uint32_t value;
};

// Pattern, block columns and block diagonals of each head.
struct FlexHeadArgs {
  const void* q = nullptr;                 // [num_heads, seqlen, head_dim], 16-bit
  const void* key_means = nullptr;         // [num_heads / group_size, num_blocks, head_dim], 16-bit
  const float* mass = nullptr;             // [num_heads, seqlen], by key
  const float* distance_mass = nullptr;    // [num_heads, seqlen], by distance
  std::int32_t* query_aware = nullptr;     // [num_heads], 0 or 1
  std::uint32_t* column_bits = nullptr;    // [num_heads, ceil(num_blocks / 32)], zero at the start
  std::uint32_t* diagonal_bits = nullptr;  // the same shape, by distance of blocks
  std::int64_t seqlen = 0;
  std::int32_t num_heads = 0;
  std::int32_t group_size = 1;
  std::int32_t block = 128;
  std::int32_t num_blocks = 0;
  std::int32_t min_blocks = 0;  // least columns and least diagonals, at most num_blocks
  float gamma = 0.0f;
  double tau = 0.0;
  float scale = 0.0f;  // softmax_scale
};
inline constexpr std::int32_t kMaxFlexBlocks = 12288;  // what a block of threads can hold

// x = r(r(x * factor of the last block) * scale), means of query blocks over zero-padded blocks.
struct FlexMeanArgs {
  std::uint16_t* means = nullptr;  // [num_heads, num_blocks, head_dim], 16-bit
  std::int32_t num_heads = 0;
  std::int32_t num_blocks = 0;
  float last_factor = 1.0f;  // block / tokens of the last block
  float scale = 0.0f;
};

// Heads [first_head, first_head + num_heads), "a batch"; only those that are query aware have
// probabilities and a cut.
struct FlexRowArgs {
  const std::int32_t* query_aware = nullptr;   // [num_q_heads]
  const std::uint32_t* column_bits = nullptr;  // as in FlexHeadArgs, of all heads
  const std::uint32_t* diagonal_bits = nullptr;
  const std::uint16_t* scores = nullptr;  // [num_heads, num_blocks, row_stride], 16-bit
  float* probabilities = nullptr;         // [num_heads, num_blocks, num_blocks]
  FlexCut* cuts = nullptr;                // [num_heads]
  std::int32_t* row_ties = nullptr;       // [num_heads, num_blocks]
  std::int32_t first_head = 0;
  std::int32_t num_heads = 0;
  std::int32_t num_blocks = 0;
  std::int32_t row_stride = 0;
  std::int32_t block = 128;
  std::int64_t seqlen = 0;
  float target = 0.0f;  // gamma * num_blocks
  bool dense = false;   // every block of every row
  // The plan (plan_view.h).
  const std::int64_t* item_offsets = nullptr;
  PlanItem* items = nullptr;
  std::int32_t* item_counts = nullptr;
  // Zero, or the complement of head * num_blocks + row of a row with a score that is not finite.
  std::uint32_t* bad_row = nullptr;
};

// Probabilities and cuts of the same rows.
struct FlexCutArgs {
  FlexRowArgs rows;
};

}  // namespace s2o
