// Arguments of the kernels behind XAttention (lib/methods/xattention). All pointers are device
// pointers. Host-safe.
//
// A reduced row a is the stride group of queries a in reverse, a reduced column b the stride group
// of keys b; their product is the antidiagonal sum G[a, b]. Columns are summed in groups of
// kStrideGroup: of each row and group the largest logit, of each row and block of keys the sum of
// exponentials relative to it. What is left of the softmax is done once all groups are there.
#pragma once

#include <cstdint>

#include "kernels/common/host_device.h"
#include "kernels/planning/pooled/ops.h"

namespace s2o {

inline constexpr int kStrideRows = 128;      // reduced rows of a tile
inline constexpr int kStrideColumns = 256;   // reduced columns of a step
inline constexpr int kStrideGroup = 64;      // reduced columns with one reference
inline constexpr int kStrideChunkSteps = 8;  // steps of a block of threads

// Groups of tiles [first, end) of rows, in order: tile t needs those up to its diagonal.
S2O_ANYWHERE inline std::int64_t stride_groups(std::int64_t first, std::int64_t end) {
  constexpr std::int64_t kPerTile = kStrideRows / kStrideGroup;
  return (end * (end + 1) - first * (first + 1)) / 2 * kPerTile;
}

// Rows of tiles [first_tile, end_tile) of all heads, "a strip".
struct XAttentionSumArgs {
  const void* q = nullptr;  // [num_q_heads, seqlen, head_dim], 16-bit
  const void* k = nullptr;  // [num_kv_heads, seqlen, head_dim], 16-bit
  // [num_q_heads, stride_groups(strip), kStrideRows], log2
  float* references = nullptr;
  // [num_q_heads, stride_groups(strip), kStrideRows, kStrideGroup / columns_per_block]
  float* sums = nullptr;
  std::int64_t seqlen = 0;
  std::int32_t num_q_heads = 0;
  std::int32_t group_size = 1;
  std::int32_t stride = 8;
  std::int32_t columns_per_block = 16;  // block / stride: 8, 16 or 32
  std::int32_t num_rows = 0;            // ceil(seqlen / stride)
  std::int32_t first_tile = 0;
  std::int32_t end_tile = 0;
  std::int32_t num_chunks = 0;  // of kStrideChunkSteps * kStrideColumns columns, of the last tile
  float scale_log2 = 0.0f;      // softmax_scale / stride * log2(e)
};

// W[i, j] of the blocks of queries [first_block, first_block + num_blocks), which lie in the strip:
// the mass of key block j summed over the reduced rows of block i, rounded to the type of q.
struct XAttentionMassArgs {
  const float* references = nullptr;  // as in XAttentionSumArgs
  const float* sums = nullptr;
  std::uint16_t* mass = nullptr;  // [num_q_heads, num_blocks, row_stride], 16-bit
  std::int32_t num_q_heads = 0;
  std::int32_t columns_per_block = 16;
  std::int32_t num_rows = 0;
  std::int32_t first_tile = 0;
  std::int32_t end_tile = 0;
  std::int32_t first_block = 0;
  std::int32_t num_blocks = 0;
  std::int32_t row_stride = 0;
};

struct XAttentionRowArgs {
  RowArgs rows;  // their scores are the masses
  double mass_share = 0.0;
  std::int32_t first_chunk_blocks = 0;  // rows below this follow another rule
};

}  // namespace s2o
