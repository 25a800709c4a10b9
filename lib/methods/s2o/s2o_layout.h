// Where the scores and orders of S2O's rows lie, in which batches they are computed, and the part
// of the plan that does not depend on Q and K. Host code without CUDA.
#pragma once

#include <cstdint>
#include <vector>

#include "kernels/common/plan_view.h"
#include "kernels/common/problem.h"
#include "kernels/planning/s2o/history.h"
#include "lib/methods/s2o/s2o.h"

namespace s2o {

// Scores take at most so many bytes per token and list (history.h), 2 a key; classes, 1 a key,
// twice as many: few batches of them are faster.
inline constexpr std::int64_t kScoreBytesPerToken = 128;
// Bytes per token and query head of the whole workspace, whatever the settings, from 32,768 tokens
// at head_dim 128 or less: orders (kListBytesPerToken), scores, the rest for means, orders of
// queries and items.
inline constexpr std::int64_t kS2oBytesPerToken = 528;

// Checks the settings against the problem.
HistoryShape s2o_history_shape(const Problem& problem, const S2oSettings& settings);

// Segments [first_segment, end_segment) of all lists, whose orders are in memory together.
struct OrderBatch {
  std::int32_t first_segment = 0;
  std::int32_t end_segment = 0;
  std::vector<RowBatch> rows;  // whose scores, or classes in their place, are in memory together
};

// Whether classes (MeanClassArgs) take the place of scores. What they list is found and sorted in
// shared memory, which takes time by the number of keys listed; scores take it by the length of the
// history, and are the better near the whole of it.
inline constexpr double kListedShare = 0.75;  // of the keys, at most
bool has_listed_orders(const HistoryShape& shape);

struct S2oLayout {
  bool has_classes = false;  // a byte a key in place of scores
  // Of scores or classes [num_segments + 1], into a list, multiples of 64.
  std::vector<std::int64_t> row_offsets;
  // [num_segments], into a list of the segment's batch; of the first list, where lists differ.
  std::vector<std::int64_t> order_offsets;
  std::vector<std::int64_t> list_offsets;  // [num_lists, num_segments], into all orders
  std::vector<OrderBatch> batches;
  std::int64_t score_entries = 0;     // of the largest batch of scores
  std::int64_t order_per_list = 0;    // room of the first list: of the largest batch of orders
  std::int64_t order_entries = 0;     // room of all lists
  std::int64_t history_per_list = 0;  // scores of a list
  std::int64_t ordered_per_list = 0;  // entries of all orders of a list

  // Scores take at most the limits' scratch and kScoreBytesPerToken, but always hold one tile of
  // rows; orders at most the limits' lists, but always hold one segment.
  //
  // kept_fractions: HistoryShape::kept_fraction of each list; empty: that of the shape.
  S2oLayout(const HistoryShape& shape, const PlannerLimits& limits,
            const std::vector<std::int32_t>& kept_fractions = {});

  std::int64_t order_offset(std::int64_t list, std::int64_t segment) const {
    return list_offsets[static_cast<std::size_t>(
        list * static_cast<std::int64_t>(order_offsets.size()) + segment)];
  }

  std::int64_t score_bytes() const { return has_classes ? 1 : 2; }

 private:
  void add_order_batches(const HistoryShape& shape, std::int64_t limit,
                         const std::vector<std::int32_t>& kept_fractions);
  void add_score_batches(const HistoryShape& shape, std::int64_t limit, OrderBatch& batch);
};

// Items in tile order.
struct PassSkeleton {
  std::vector<PlanItem> items;
  std::vector<std::int64_t> item_offsets;  // [num_plan_heads * num_q_tiles + 1]
  std::vector<std::int32_t> fold_end;      // [num_plan_heads * num_q_tiles], or empty
  std::vector<float> head_taus;            // [num_plan_heads], or empty
};
// One pass; with a query guide the own segment has a pass of its own, in natural order.
struct PlanSkeleton {
  PlanView header;
  std::vector<PassSkeleton> passes;
};
// kept_fractions as of the layout.
PlanSkeleton s2o_plan_skeleton(const Problem& problem, const S2oSettings& settings,
                               const HistoryShape& shape, const S2oLayout& layout,
                               const std::vector<std::int32_t>& kept_fractions = {});

}  // namespace s2o
