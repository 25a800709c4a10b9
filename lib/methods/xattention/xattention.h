// Settings, selection rules and plans of XAttention (definition: xattention.cpp).
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "lib/input/attention_input.h"
#include "lib/methods/common/block_selection.h"
#include "lib/planning/tile_planner.h"

namespace s2o {

struct XAttentionSettings {
  int block;           // tokens
  int stride;          // tokens; 4, 8 or 16
  double threshold;    // share of a row's mass
  std::int64_t chunk;  // tokens; rows before it follow the rule of the first chunk
  PlannedFold fold;    // what stands in for the keys that are not visited
};

SparsePlan plan_xattention(const AttentionInput& input, const XAttentionSettings& settings,
                           const Rounder& round);
// Blocks of 8 strides or more.
std::unique_ptr<Planner> xattention_planner(const Problem& problem,
                                            const XAttentionSettings& settings,
                                            const PlannerLimits& limits);

// Query chunk C of the estimator, tokens: part of the method, because rows of the first chunk are
// selected by another rule than later rows. seqlen itself (rounded up) to 16K, 2048 from 128K on.
std::int64_t xattention_chunk(std::int64_t seqlen);

// Block masses W of query blocks [q_begin, q_end): antidiagonal sums of stride x stride tiles,
// softmax over the reduced keys b <= a, summed per block. `key_rows` is k of the KV head,
// zero-padded to a multiple of stride tokens. mass [q_end - q_begin, num_kv_blocks]
void xattention_block_mass(const AttentionInput& input, int q_head, const float* key_rows,
                           std::int64_t q_begin, std::int64_t q_end, int block, int stride,
                           const Rounder& round, std::span<float> mass);

// Marks the blocks that query block q_block visits. `mass` is its row of W, [num_kv_blocks].
void xattention_select_row(std::span<const float> mass, std::int64_t q_block, double threshold,
                           bool first_chunk, std::uint8_t* selected);

}  // namespace s2o
