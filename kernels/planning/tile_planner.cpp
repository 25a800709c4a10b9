#include "kernels/planning/tile_planner.h"

#include <algorithm>
#include <vector>

#include "kernels/attention/launch_plan.h"

namespace s2o {

TilePlanner::TilePlanner(const Problem& problem, int block_m, int block_n, int pack,
                         const PlannedFold& fold,
                         const std::function<std::int64_t(int tile)>& max_items,
                         std::int64_t l2_bytes)
    : problem_(problem) {
  header_.block_m = block_m;
  header_.block_n = block_n;
  header_.pack = pack;
  header_.num_plan_heads = problem.num_q_heads / pack;
  header_.num_q_tiles = static_cast<int>((problem.seqlen * pack + block_m - 1) / block_m);
  header_.num_passes = 1;
  header_.fold = fold.rule;

  // The launch order puts tiles with more causal keys first: how many are selected is not known.
  std::vector<std::int64_t> offsets = {0};
  std::vector<std::int64_t> causal_offsets = {0};
  std::vector<PlanItem> causal_items;
  std::vector<std::int32_t> fold_end;
  const std::int64_t granularity = fold.granularity > 0 ? fold.granularity : fold.rule.fold_block;
  for (int head = 0; head < header_.num_plan_heads; ++head) {
    for (int tile = 0; tile < header_.num_q_tiles; ++tile) {
      const std::int64_t first = static_cast<std::int64_t>(tile) * block_m / pack;
      const std::int64_t end_slot =
          std::min((static_cast<std::int64_t>(tile) + 1) * block_m, problem.seqlen * pack);
      offsets.push_back(offsets.back() + max_items(tile));
      causal_items.push_back({.count = static_cast<std::int32_t>((end_slot - 1) / pack + 1)});
      causal_offsets.push_back(static_cast<std::int64_t>(causal_items.size()));
      fold_end.push_back(static_cast<std::int32_t>(first / granularity * granularity));
    }
  }
  const PassView causal{.item_offsets = causal_offsets.data(), .items = causal_items.data()};
  items_ = workspace_.add<PlanItem>(offsets.back());
  item_offsets_ = workspace_.add_constant(offsets);
  item_counts_ = workspace_.add<std::int32_t>(num_tiles());
  tile_order_ = workspace_.add_constant(tile_launch_order(problem, header_, causal, l2_bytes));
  if (fold.rule.kind != Compensation::kNone) fold_end_ = workspace_.add_constant(fold_end);
  bad_row_ = workspace_.add<std::uint32_t>(1);
}

DevicePlan TilePlanner::device_plan() const {
  DevicePlan plan;
  plan.header = header_;
  plan.passes.push_back({.key_order = key_order_.data(),
                         .item_offsets = item_offsets_.data(),
                         .item_counts = item_counts_.data(),
                         .items = items_.data(),
                         .gather_indices = gather_indices_.data(),
                         .fold_end = fold_end_.data()});
  plan.tile_orders.push_back(tile_order_.data());
  return plan;
}

std::string TilePlanner::row_name(std::int64_t row) const {
  return (header_.pack > 1 ? "KV head " : "query head ") +
         std::to_string(row / header_.num_q_tiles) + ", query tile " +
         std::to_string(row % header_.num_q_tiles);
}

}  // namespace s2o
