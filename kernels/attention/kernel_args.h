// What a launch of one pass hands to an attention kernel. All pointers are device pointers; the
// same struct drives the CPU model of the kernels in the tests.
#pragma once

#include <cstdint>

#include "kernels/common/plan_view.h"

namespace s2o {

struct AttentionKernelArgs {
  const void* q = nullptr;  // [num_q_heads, seqlen, head_dim], 16-bit
  const void* k = nullptr;  // [num_kv_heads, seqlen, head_dim], 16-bit
  const void* v = nullptr;  // [num_kv_heads, seqlen, head_dim], 16-bit
  // Where this pass writes its rows: fp32 (`out_fp32`) or the type of q (`out_16`); one is null.
  float* out_fp32 = nullptr;  // [num_q_heads, seqlen, head_dim]
  void* out_16 = nullptr;     // [num_q_heads, seqlen, head_dim]
  float* lse = nullptr;       // [num_q_heads, seqlen], natural log
  // A resumed pass reads its state from here and from lse; null starts from nothing. May be
  // out_fp32 itself: a row is read and written by the one tile that owns it.
  const float* resume_out = nullptr;  // [num_q_heads, seqlen, head_dim]
  TileStats* stats = nullptr;         // [num_plan_heads * num_q_tiles] of this pass

  // Tiles in launch order, heavy ones first: plan_head * num_q_tiles + tile.
  const std::int32_t* tile_order = nullptr;  // [num_tiles]
  std::int32_t num_tiles = 0;
  std::int32_t* next_tile = nullptr;  // counter of a persistent launch, zero at its start

  PassView pass;
  std::int64_t seqlen = 0;
  std::int32_t num_q_tiles = 0;
  std::int32_t plan_heads_per_kv_head = 1;
  std::int32_t pack = 1;
  std::int32_t block_n = 128;  // keys of a plan step; a multiple of the kernel's own tile
  float scale_log2 = 0.0f;     // softmax_scale * log2(e): logits in base 2
  std::int32_t window_sink = 0;
  std::int32_t window_size = 0;
  float pv_skip_threshold = 0.0f;
  std::int32_t pv_skip_exempt = 1;
  StopRule stop;
  FoldRule fold;
};

}  // namespace s2o
