// Visiting orders of S2O's device planners against exact scores of the CPU (key_ranking.h). Tests
// and benchmarks only.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "kernels/testing/order_compare.h"
#include "lib/input/attention_input.h"
#include "lib/methods/s2o/key_ranking.h"
#include "lib/methods/s2o/s2o_layout.h"
#include "lib/plan/sparse_plan.h"

namespace s2o::testing {

// What a test or a benchmark sets of S2O; the rest of the paper's method, without an early stop.
struct S2oCase {
  std::int64_t segment_size = 1024;
  int block_m = 128;
  bool share_key_order_in_group = false;
  QueryGuide query_guide = QueryGuide::kNone;
  std::int64_t local_window = 0;
  std::int64_t max_depth = 0;
  std::int64_t score_bytes = 0;
  std::int64_t order_bytes_per_token = kListBytesPerToken;
  StopRule stop;
  FoldRule fold;

  S2oSettings settings() const;
  PlannerLimits limits(std::int64_t l2_bytes = 1 << 20) const {
    return {.l2_bytes = l2_bytes,
            .list_bytes_per_token = order_bytes_per_token,
            .scratch_bytes = score_bytes};
  }
  std::unique_ptr<Planner> planner(const Problem& problem, std::int64_t l2_bytes = 1 << 20) const {
    return s2o_planner(problem, settings(), limits(l2_bytes));
  }
};

// Orders of all rows, as a planner leaves them in gather_indices.
struct S2oOrders {
  std::vector<std::int32_t> order;
  S2oLayout layout;
  HistoryShape shape;
  std::vector<std::int32_t> counts;  // [lists, segments]: keys of each order

  S2oOrders(const Problem& problem, const S2oCase& settings, const SparsePlan& plan);
  std::span<const std::int32_t> row(int list, std::int64_t segment) const;
};

// Compares the rows of the given segments (all when empty) of all lists of the input with a sort of
// exact scores; failures of single rows go to stderr.
OrderComparison compare_orders_with_cpu(const AttentionInput& input, const S2oCase& settings,
                                        const S2oOrders& plan,
                                        std::span<const std::int64_t> segments = {});

}  // namespace s2o::testing
