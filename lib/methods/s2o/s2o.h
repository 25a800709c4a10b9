// Settings and plans of `s2o` (the paper) and `s2o_plus` (what this project adds): segments, query
// order, ranked history, early stop.
#pragma once

#include <memory>
#include <vector>

#include "kernels/planning/s2o/query_order_ops.h"
#include "lib/methods/method.h"
#include "lib/methods/s2o/key_ranking.h"
#include "lib/methods/s2o/row_ranking.h"

namespace s2o {

// What of the settings query heads of one plan may differ in, as below.
struct S2oHead {
  float tau = 0.0f;
  float floor_per_tau = 0.0f;
  float reach_per_tau = 0.0f;
};

struct S2oSettings {
  std::int64_t segment_size;  // tokens, a multiple of block_m
  int block_m;                // query rows of a tile
  int block_n;                // keys of a step
  // Orders the queries of a segment; the history then has a pass of its own, in that order.
  QueryGuide query_guide;
  bool share_key_order_in_group;  // one order for all query heads of a KV head
  StopRule stop;
  std::vector<S2oHead> heads = {};  // [num_q_heads], or empty: all heads alike
  // Beyond the paper:
  Ranking ranking;
  std::int64_t local_window;  // tokens before the segment that are always visited
  FoldRule fold;
  bool natural_pass1;  // pass 1 in natural order with its own tiles, merged by LSE
  // The best keys of each history that its order holds, as in HistoryShape.
  std::int64_t max_depth;
  int kept_fraction;
  // Of ranking by rows: leading tokens that are always visited; weight below which keys are not
  // visited, and mass that may be lost to a head's reach, as multiples of tau.
  std::int64_t sink;
  float floor_per_tau;
  float reach_per_tau;

  S2oHead of(int q_head) const {
    return heads.empty() ? S2oHead{stop.tau, floor_per_tau, reach_per_tau}
                         : heads[static_cast<std::size_t>(q_head)];
  }
  bool may_stop(int q_head) const { return heads.empty() || of(q_head).tau > 0.0f; }
  // The next query head has what `alone` says; `stop` the largest tau, orders the longest, of all.
  void add_head(const S2oSettings& alone);
  std::vector<float> head_taus() const;  // PassView::head_taus
};

// Keys of a history that an order lists; 0: all. Where no step adds more mass than the one before,
// step d adds at most 1 / d of it, and a walk to tau ends after 1 / tau steps. Orders follow the
// mean query, which does not promise that for every tile: a walk that would go on ends there. With
// tau = 0, S2O is dense attention.
std::int64_t s2o_max_depth(const StopRule& stop, int block_n);

// The parameters of the paper's method, in interface order; and reading them back.
std::vector<ParamSpec> s2o_param_specs();
S2oSettings s2o_settings(const ParamSet& params);

// ConfigError as Method::check.
void check_s2o(const S2oSettings& settings);
SparsePlan plan_s2o(const AttentionInput& input, const S2oSettings& settings);
// UnsupportedError when the kernels cannot hold the problem.
std::unique_ptr<Planner> s2o_planner(const Problem& problem, const S2oSettings& settings,
                                     const PlannerLimits& limits);
// The same, or null for settings without device code: permuted rows in pass 1.
std::unique_ptr<Planner> device_planner_s2o(const DevicePlanningRequest& request,
                                            const S2oSettings& settings);

// What `s2o` and `s2o_plus` share; they differ in their parameters.
class S2oMethod : public Method {
 public:
  void check(const ParamSet& params) const override { check_s2o(settings_of(params)); }
  SparsePlan plan_cpu(const PlanContext& context, const ParamSet& params) const override;
  std::unique_ptr<Planner> device_planner(const DevicePlanningRequest& request) const override;

 private:
  virtual S2oSettings settings_of(const ParamSet& params) const = 0;
  S2oSettings settings_of(const ParamSet& params, std::span<const ParamSet> head_params) const;
};

}  // namespace s2o
