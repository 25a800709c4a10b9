#include "lib/planning/tile_planner.h"

#include <algorithm>
#include <vector>

#include "kernels/common/tile_order.h"

namespace s2o {

namespace {

// As many groups of tiles a batch as `limit` items of a plan head hold.
std::vector<TileBatch> batches_within(std::int64_t limit, std::int32_t num_tiles,
                                      std::int32_t group,
                                      const std::function<std::int64_t(int tile)>& max_items) {
  std::vector<TileBatch> batches = {{.first_tile = 0, .end_tile = 0}};
  std::int64_t items = 0;
  for (std::int32_t first = 0; first < num_tiles; first += group) {
    const std::int32_t end = std::min(first + group, num_tiles);
    std::int64_t of_group = 0;
    for (std::int32_t tile = first; tile < end; ++tile) of_group += max_items(tile);
    if (items > 0 && items + of_group > limit) {
      batches.push_back({.first_tile = first, .end_tile = first});
      items = 0;
    }
    items += of_group;
    batches.back().end_tile = end;
  }
  return batches;
}

}  // namespace

TilePlanner::TilePlanner(const Problem& problem, int block_m, int block_n, int pack,
                         const PlannedFold& fold,
                         const std::function<std::int64_t(int tile)>& max_items,
                         const PlannerLimits& limits, int tile_group)
    : problem_(problem) {
  header_.block_m = block_m;
  header_.block_n = block_n;
  header_.pack = pack;
  header_.num_plan_heads = problem.num_q_heads / pack;
  header_.num_q_tiles = static_cast<int>((problem.seqlen * pack + block_m - 1) / block_m);
  header_.num_passes = 1;
  header_.fold = fold.rule;

  const std::int64_t limit = limits.list_bytes_per_token * problem.seqlen * pack /
                             static_cast<std::int64_t>(sizeof(PlanItem));  // of a plan head
  batches_ = batches_within(limit, header_.num_q_tiles, tile_group, max_items);
  std::vector<std::int64_t> offsets(static_cast<std::size_t>(num_tiles()) + 1);
  std::vector<std::int32_t> tile_ends;
  for (const TileBatch& batch : batches_) {
    tile_ends.push_back(batch.end_tile);
    std::int64_t items = 0;
    for (int head = 0; head < header_.num_plan_heads; ++head) {
      for (std::int32_t tile = batch.first_tile; tile < batch.end_tile; ++tile) {
        offsets[static_cast<std::size_t>(head) * static_cast<std::size_t>(header_.num_q_tiles) +
                static_cast<std::size_t>(tile)] = items;
        items += max_items(tile);
      }
    }
    offsets.back() = std::max(offsets.back(), items);
  }
  // The launch order puts tiles with more causal keys first: how many are selected is not known.
  std::vector<std::int64_t> causal_offsets = {0};
  std::vector<PlanItem> causal_items;
  std::vector<std::int32_t> fold_end;
  for (int head = 0; head < header_.num_plan_heads; ++head) {
    for (int tile = 0; tile < header_.num_q_tiles; ++tile) {
      const std::int64_t first = static_cast<std::int64_t>(tile) * block_m / pack;
      const std::int64_t end_slot =
          std::min((static_cast<std::int64_t>(tile) + 1) * block_m, problem.seqlen * pack);
      causal_items.push_back({.count = static_cast<std::int32_t>((end_slot - 1) / pack + 1)});
      causal_offsets.push_back(static_cast<std::int64_t>(causal_items.size()));
      fold_end.push_back(static_cast<std::int32_t>(first / fold.step() * fold.step()));
    }
  }
  const PassView causal{.item_offsets = causal_offsets.data(), .items = causal_items.data()};
  items_ = workspace_.add<PlanItem>(offsets.back());
  item_offsets_ = workspace_.add_constant(offsets);
  item_counts_ = workspace_.add<std::int32_t>(num_tiles());
  tile_order_ = workspace_.add_constant(
      order_by_batch(tile_launch_order(problem, header_, causal, limits.l2_bytes),
                     header_.num_q_tiles, tile_ends));
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
  for (const TileBatch& batch : batches_) {
    plan.batch_ends.push_back(batch.end_tile * header_.num_plan_heads);
  }
  return plan;
}

std::string TilePlanner::row_name(std::int64_t row) const {
  return (header_.pack > 1 ? "KV head " : "query head ") +
         std::to_string(row / header_.num_q_tiles) + ", query tile " +
         std::to_string(row % header_.num_q_tiles);
}

}  // namespace s2o
