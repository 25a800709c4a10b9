// Arguments of the kernels behind FlashPrefill and RBS, which keep the key blocks whose energy
// against a tile of queries is within a factor of the loudest. All pointers are device pointers.
// Host-safe. Definitions: lib/methods/{flash_prefill,rbs}.cpp.
#pragma once

#include <cstdint>

#include "kernels/common/plan_view.h"

namespace s2o {

inline constexpr int kEnergyBlock = 128;  // keys of a block and packed rows of a tile

enum class BlockEnergyRule : std::uint8_t { kFlashPrefillV1, kFlashPrefillV2, kRbs };

struct BlockEnergyArgs {
  BlockEnergyRule rule = BlockEnergyRule::kFlashPrefillV2;
  const void* q = nullptr;      // [num_plan_heads * pack, seqlen, head_dim], 16-bit
  const void* means = nullptr;  // [num_kv_heads, num_blocks, head_dim], 16-bit
  // RBS: added to the logits of the second branch, times |q|; [num_kv_heads, num_blocks].
  const float* lifts = nullptr;  // null: one branch
  std::int64_t seqlen = 0;
  std::int32_t num_blocks = 0;
  std::int32_t num_plan_heads = 0;
  std::int32_t plan_heads_per_kv_head = 1;
  std::int32_t num_q_tiles = 0;
  std::int32_t first_tile = 0;  // tiles [first_tile, end_tile) of every plan head are planned
  std::int32_t end_tile = 0;
  std::int32_t pack = 1;
  float scale = 0.0f;
  float alpha = 0.0f;
  float alpha_lifted = 0.0f;
  std::int32_t sink_blocks = 0;
  std::int32_t window_blocks = 0;
  std::int32_t last_tiles = 0;
  // The plan (plan_view.h).
  const std::int64_t* item_offsets = nullptr;
  PlanItem* items = nullptr;
  std::int32_t* item_counts = nullptr;
  // Zero, or the complement of the number of a tile with a logit that is not finite.
  std::uint32_t* bad_row = nullptr;
};

// RBS: radius of every complete block around its fp32 mean, then the lift that derives from it.
struct BlockRadiusArgs {
  const void* k = nullptr;  // [num_kv_heads, seqlen, head_dim], 16-bit
  float* radii = nullptr;   // [num_kv_heads, num_blocks]; a partial last block is not written
  float* lifts = nullptr;   // [num_kv_heads, num_blocks]; 0 for a partial last block
  std::int64_t seqlen = 0;
  std::int32_t num_kv_heads = 0;
  std::int32_t num_blocks = 0;
};

}  // namespace s2o
