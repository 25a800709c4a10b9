// Planning of `s2o` and `s2o_plus` on a device (definition: lib/methods/common/s2o_planner.cpp).
#pragma once

#include <cstdint>
#include <memory>

#include "kernels/planning/planner.h"
#include "kernels/planning/s2o/query_order_ops.h"

namespace s2o {

// Planning takes memory linear in the sequence whatever the segment size, though orders and scores
// at a fixed segment size grow with its square: consecutive segments are planned in batches that
// share memory, attention over one batch before the next. Bytes per token and list (history.h):
inline constexpr std::int64_t kOrderBytesPerToken = 256;  // orders, 4 bytes a key; Q takes as much
inline constexpr std::int64_t kScoreBytesPerToken = 128;  // scores, 2 bytes a key
// Bytes per token and query head of the whole workspace, whatever the settings, from 32,768 tokens
// at head_dim 128 or less: orders, scores, 130 for the clusters of segments of 64 tokens, the rest
// for normalisers, orders of queries and items.
inline constexpr std::int64_t kS2oBytesPerToken = 576;

struct S2oDeviceSettings {
  std::int64_t segment_size = 1024;  // tokens, a multiple of block_m
  int block_m = 128;
  int block_n = 128;
  bool share_key_order_in_group = false;
  // Scores of keys (lib/methods/common/key_ranking.h): from the mean query, or
  bool diagonal_ranking = false;  // with the diagonal second-order term, or
  int num_clusters = 0;           // from that many means of clusters, at most kMaxClusters
  int cluster_iterations = 3;
  bool normalizer_aware = false;  // queries weigh by their estimated normaliser
  bool value_aware = false;       // plus the log distance of the key's value from its block's mean
  // Orders the queries of a segment; the history then has a pass of its own, in that order.
  QueryGuideKind query_guide = QueryGuideKind::kNone;
  std::int64_t local_window = 0;
  // Ranked keys kept of each history; 0 keeps all, and only then tau = 0 equals dense attention.
  std::int64_t max_depth = 0;
  int kept_fraction = 0;  // as in HistoryShape
  // Scores of several rows are computed and ranked together within this many bytes.
  std::int64_t score_bytes = std::int64_t{1} << 30;
  // Orders that are in memory together; tests make it small.
  std::int64_t order_bytes_per_token = kOrderBytesPerToken;
  StopRule stop;
  FoldRule fold;
};

// `l2_bytes` of the device orders the tiles. UnsupportedError when the settings cannot run on the
// problem.
std::unique_ptr<Planner> make_s2o_planner(const Problem& problem, const S2oDeviceSettings& settings,
                                          std::int64_t l2_bytes);

}  // namespace s2o
