// Selection rules of SpargeAttn (lib/methods/sparge_attn.cpp), exposed for tests and the GPU
// planner.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "lib/methods/common/block_selection.h"

namespace s2o {

// Mean cosine similarity of all pairs of rows, self pairs included. A zero row makes it NaN.
// x [num_rows, head_dim]; at level A (`round_fp16`) the unit rows are rounded to fp16.
float sparge_self_similarity(const float* x, std::int64_t num_rows, int head_dim, bool round_fp16);

// Key blocks that the causal block mask leaves to query block q_block: all j with
// j < (q_block + 1) * block_m / block_n, compared as reals; at most num_kv_blocks.
std::int64_t sparge_causal_blocks(std::int64_t q_block, int block_m, int block_n,
                                  std::int64_t num_kv_blocks);

struct SpargeBudget {
  double topk = 0.5;                 // share of ALL key blocks, causal or not
  std::optional<double> cdfthreshd;  // when set, replaces topk
};

// How many of the best-ranked key blocks a row takes; at least 1. sorted_probability
// [num_kv_blocks], descending; `stored` rounds each running sum (level A).
std::int64_t sparge_row_count(std::span<const float> sorted_probability, const SpargeBudget& budget,
                              const Rounder& stored);

// Marks the blocks that one query block visits. scores [num_kv_blocks] are its logits and are
// overwritten; key_similar [num_kv_blocks].
void sparge_select_row(std::span<float> scores, std::span<const std::uint8_t> key_similar,
                       bool query_similar, std::int64_t num_causal, const SpargeBudget& budget,
                       const Rounder& round, std::uint8_t* selected);

}  // namespace s2o
