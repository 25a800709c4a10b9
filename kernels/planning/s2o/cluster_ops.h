// Arguments of the kernels behind S2O's rankings beyond the mean query
// (lib/methods/s2o/key_ranking.h): moments of blocks of keys and values, estimated normalisers,
// clusters of queries, scores from clusters. All pointers are device pointers. Host-safe.
#pragma once

#include <cstdint>

#include "kernels/planning/s2o/ops.h"

namespace s2o {

inline constexpr int kMomentBlock = 128;  // rows of a block
inline constexpr int kMaxClusters = 32;   // of a row; fewer are padded with empty ones

// Of consecutive blocks of rows, each over the rows it has; fp32 inside.
struct MomentArgs {
  const void* x = nullptr;    // [num_heads, seqlen, head_dim], 16-bit
  void* means = nullptr;      // [num_heads, num_blocks, head_dim], 16-bit; may be null
  void* variances = nullptr;  // the same shape, times kVarianceUnit; null when means is
  // log of each row's distance from the mean of its block, [num_heads, seqlen]; may be null.
  float* log_distances = nullptr;
  std::int64_t seqlen = 0;
  std::int32_t num_heads = 0;
  std::int32_t num_blocks = 0;
};

// lse of every query from the moments of its causal blocks of keys; the block that holds the query
// counts up to it.
struct LseArgs {
  const void* q = nullptr;          // [num_q_heads, seqlen, head_dim], 16-bit
  const void* means = nullptr;      // as in MomentArgs, of k
  const void* variances = nullptr;  // as in MomentArgs, of k
  float* lse = nullptr;             // [num_q_heads, seqlen], natural log
  std::int64_t seqlen = 0;
  std::int32_t num_q_heads = 0;
  std::int32_t group_size = 1;
  std::int32_t num_blocks = 0;  // ceil(seqlen / kMomentBlock), of keys and of queries
  float softmax_scale = 0.0f;
};

// Clusters of the queries of each row (history.h) by Lloyd's algorithm from rows at equal
// distances, and the mean of each cluster with queries weighted by exp(-lse).
struct ClusterArgs {
  const void* q = nullptr;     // [num_q_heads, seqlen, head_dim], 16-bit
  const float* lse = nullptr;  // [num_q_heads, seqlen]; null: all weights are 1
  // Rows as in MeanQueryArgs, [rows, kMaxClusters, head_dim], 16-bit, times softmax_scale log2(e).
  void* means = nullptr;
  float* log2_weights = nullptr;  // [rows, kMaxClusters]; kNoWeight for an empty cluster
  HistoryShape shape;
  std::int32_t heads_per_list = 1;
  std::int32_t num_clusters = kMaxClusters;
  std::int32_t iterations = 3;
  float softmax_scale = 0.0f;
};
inline constexpr float kNoWeight = -1e30f;  // finite, so that differences are not NaN

// score = log sum_c exp2(mean_c . k + log2_weight_c) + key_bias. `rows.means` are cluster means,
// `rows.variances` is null; tiles are of kClusterRowTile rows, chunks of kClusterKeyChunk keys.
struct ClusterScoreArgs {
  KeyScoreArgs rows;
  const float* log2_weights = nullptr;  // as in ClusterArgs
};
inline constexpr int kClusterRowTile = 4;
inline constexpr int kClusterKeyChunk = 2048;

}  // namespace s2o
