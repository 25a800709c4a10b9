// The planner behind `s2o` (the paper) and `s2o_plus` (what this project adds): segments, query
// order, ranked history, early stop.
#pragma once

#include <memory>
#include <vector>

#include "lib/methods/common/key_ranking.h"
#include "lib/methods/common/row_ranking.h"
#include "lib/methods/method.h"

namespace s2o {

enum class QueryGuide { kNone, kPrefixMeanKey, kGlobalMeanKey, kSegmentMeanQuery };
enum class HistoryOrder { kRanked, kRecent, kNone };

struct S2oSettings {
  std::int64_t segment_size = 1024;  // tokens, a multiple of block_m
  int block_m = 128;                 // query rows of a tile
  int block_n = 128;                 // keys of a step
  QueryGuide query_guide = QueryGuide::kNone;
  HistoryOrder history_order = HistoryOrder::kRanked;
  bool share_key_order_in_group = false;  // one order for all query heads of a KV head
  StopRule stop;
  // Beyond the paper:
  RankingSettings ranking;
  std::int64_t local_window = 0;  // tokens before the segment that are always visited
  FoldRule fold;
  // Of ranking by rows: leading tokens that are always visited; weight below which keys are not
  // visited and far share below which a tile ranks nothing, both as multiples of tau.
  std::int64_t sink = 64;
  float floor_per_tau = 1.0f / 16.0f;
  float local_per_tau = 2.0f;
  bool natural_pass1 = false;  // pass 1 in natural order with its own tiles, merged by LSE
};

// The parameters of the paper's method, in interface order; and reading them back.
std::vector<ParamSpec> s2o_param_specs();
S2oSettings s2o_settings(const ParamSet& params);

SparsePlan plan_s2o(const AttentionInput& input, const S2oSettings& settings);
// Null for settings without device code: permuted rows in pass 1, an unranked history, low-rank or
// full covariance, more clusters than kMaxClusters.
std::unique_ptr<Planner> device_planner_s2o(const DevicePlanningRequest& request,
                                            const S2oSettings& settings);

}  // namespace s2o
