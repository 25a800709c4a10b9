// Arguments of the operations behind SpargeAttn (lib/methods/sparge_attn). All pointers are
// device pointers. Host-safe. "r" is the rounding to the type of q.
#pragma once

#include <cstdint>

#include "kernels/planning/pooled/ops.h"

namespace s2o {

// Mean of all rows of each head: fp32 sums of parts of kColumnSumRows rows, their sum in fp64, r.
struct ColumnMeanArgs {
  const void* x = nullptr;        // [num_heads, seqlen, head_dim], 16-bit
  float* partial_sums = nullptr;  // [num_heads, num_parts, head_dim]
  void* means = nullptr;          // [num_heads, head_dim], 16-bit
  std::int64_t seqlen = 0;
  std::int32_t num_heads = 0;
  std::int32_t num_parts = 0;  // ceil(seqlen / kColumnSumRows)
};
inline constexpr int kColumnSumRows = 512;

struct SpargeRowArgs {
  RowArgs rows;
  const std::uint8_t* q_similar = nullptr;  // [num_heads, num_q_blocks]
  const std::uint8_t* k_similar = nullptr;  // [num_heads / heads_per_k, num_kv_blocks]
  std::int32_t heads_per_k = 1;
  bool by_mass = false;     // cross-out at `threshold`, else the best `top_count`
  bool keep_first = false;  // block 0 besides
  float threshold = 0.0f;
  std::int32_t top_count = 1;
};

}  // namespace s2o
