// Settings, selection rules and device planner of SpargeAttn (definition: sparge_attn.cpp).
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "lib/methods/common/block_selection.h"
#include "lib/planning/tile_planner.h"

namespace s2o {

// Mean cosine similarity of all pairs of rows, self pairs included. A zero row makes it NaN.
// x [num_rows, head_dim]; at level A (`round_fp16`) the unit rows are rounded to fp16.
float sparge_self_similarity(const float* x, std::int64_t num_rows, int head_dim, bool round_fp16);

// Key blocks that the causal block mask leaves to query block q_block: all j with
// j < (q_block + 1) * block_m / block_n, compared as reals; at most num_kv_blocks.
std::int64_t sparge_causal_blocks(std::int64_t q_block, int block_m, int block_n,
                                  std::int64_t num_kv_blocks);

struct SpargeBudget {
  double topk;                       // share of ALL key blocks, causal or not
  std::optional<double> cdfthreshd;  // when set, replaces topk
};

struct SpargeSettings {
  SpargeBudget budget;
  double simthreshd;    // blocks whose mean cosine is not above this are dense
  int block_m;          // tokens of a block of queries
  int block_n;          // tokens of a block of keys
  bool attention_sink;  // block 0 is visited always
  float pv_skip_threshold;
  int pv_skip_exempt;  // last steps of a tile that are never skipped
  PlannedFold fold;
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

std::unique_ptr<Planner> sparge_attn_planner(const Problem& problem, const SpargeSettings& settings,
                                             const PlannerLimits& limits);

}  // namespace s2o
