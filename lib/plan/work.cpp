#include "lib/plan/work.h"

#include <algorithm>
#include <vector>

#include "kernels/common/ceil_div.h"
#include "kernels/common/parallel.h"

namespace s2o {
namespace {

// Keys x in [begin, end) with x <= t and, for a window, (x < sink or t - x < window).
std::int64_t visible_in_run(std::int64_t begin, std::int64_t end, std::int64_t t, MaskClass mask,
                            const PlanView& plan) {
  if (mask == MaskClass::kNone) return end - begin;
  const std::int64_t causal_end = std::min(end, t + 1);
  if (causal_end <= begin) return 0;
  if (mask == MaskClass::kCausal) return causal_end - begin;
  const std::int64_t sink_end = std::clamp<std::int64_t>(plan.window_sink, begin, causal_end);
  const std::int64_t window_begin =
      std::clamp<std::int64_t>(t - plan.window_size + 1, sink_end, causal_end);
  return (sink_end - begin) + (causal_end - window_begin);
}

class WorkCounter {
 public:
  WorkCounter(const Problem& problem, const SparsePlan& plan, const std::vector<TileStats>& stats)
      : problem_(problem), plan_(plan), stats_(stats) {}

  // Adds one tile of one pass to the counts of its query heads.
  void add_tile(std::size_t p, int plan_head, int tile, std::vector<WorkCounts>& per_head) const {
    const PlanView& header = plan_.header;
    const PlanPass& pass = plan_.passes[p];
    const TileRows rows = tile_rows(problem_, header, tile);
    const auto index = static_cast<std::size_t>(plan_.tile_index(plan_head, tile));
    const TileStats& stats = stats_[p * static_cast<std::size_t>(plan_.num_tiles()) + index];

    std::int64_t steps = 0;
    std::int64_t stoppable_left = stats.stop_steps;
    for (std::int64_t i = pass.item_offsets[index]; i < pass.item_offsets[index + 1]; ++i) {
      const PlanItem& item = pass.items[static_cast<std::size_t>(i)];
      std::int64_t item_steps = ceil_div(item.count, header.block_n);
      if (item.stoppable) {
        item_steps = std::min(item_steps, stoppable_left);
        stoppable_left -= item_steps;
      }
      steps += item_steps;
      const std::int64_t keys = std::min<std::int64_t>(item.count, item_steps * header.block_n);
      if (keys > 0) add_visible(pass, plan_head, rows, item, keys, per_head);
    }
    const std::int64_t fold_columns =
        ceil_div(stats.fold_columns, kFoldColumnTile) * kFoldColumnTile;
    const std::int64_t columns = steps * header.block_n + fold_columns;
    for (std::int64_t slot = rows.first_slot; slot < rows.end_slot; ++slot) {
      WorkCounts& counts = per_head[head_of(plan_head, slot)];
      counts.executed_pairs += columns;
      counts.folded_pairs += fold_columns;
    }
  }

  // What the dense kernel with the same tile shape executes for the tile.
  void add_dense(int plan_head, int tile, std::vector<WorkCounts>& per_head) const {
    const TileRows rows = tile_rows(problem_, plan_.header, tile);
    const std::int64_t columns =
        ceil_div(rows.last_position + 1, plan_.header.block_n) * plan_.header.block_n;
    for (std::int64_t slot = rows.first_slot; slot < rows.end_slot; ++slot) {
      per_head[head_of(plan_head, slot)].dense_pairs += columns;
    }
  }

 private:
  std::size_t head_of(int plan_head, std::int64_t slot) const {
    const int pack = plan_.header.pack;
    return static_cast<std::size_t>(plan_head) * pack + static_cast<std::size_t>(slot % pack);
  }
  std::int64_t position_of(const PlanPass& pass, int plan_head, std::int64_t slot) const {
    if (pass.query_order.empty()) return slot / plan_.header.pack;
    return pass.query_order[static_cast<std::size_t>(plan_head * problem_.seqlen + slot)];
  }

  void add_visible(const PlanPass& pass, int plan_head, const TileRows& rows, const PlanItem& item,
                   std::int64_t keys, std::vector<WorkCounts>& per_head) const {
    const bool plain_run = item.kind == ItemKind::kRun && pass.key_order.empty();
    std::vector<std::int32_t> sorted;  // original tokens of a masked, reordered item
    if (!plain_run && item.mask != MaskClass::kNone) {
      const std::int32_t* source =
          item.kind == ItemKind::kGather
              ? pass.gather_indices.data() + item.begin
              : pass.key_order.data() + plan_head * problem_.seqlen + item.begin;
      sorted.assign(source, source + keys);
      std::sort(sorted.begin(), sorted.end());
    }
    for (std::int64_t slot = rows.first_slot; slot < rows.end_slot; ++slot) {
      const std::int64_t t = position_of(pass, plan_head, slot);
      std::int64_t visible = 0;
      if (plain_run) {
        visible = visible_in_run(item.begin, item.begin + keys, t, item.mask, plan_.header);
      } else if (item.mask == MaskClass::kNone) {
        visible = keys;
      } else {
        visible = count_sorted(sorted, t, item.mask);
      }
      per_head[head_of(plan_head, slot)].visited_pairs += visible;
    }
  }

  std::int64_t count_sorted(const std::vector<std::int32_t>& sorted, std::int64_t t,
                            MaskClass mask) const {
    const auto below = [&sorted](std::int64_t key) {
      return std::lower_bound(sorted.begin(), sorted.end(), key) - sorted.begin();
    };
    const std::int64_t causal = below(t + 1);
    if (mask == MaskClass::kCausal) return causal;
    const std::int64_t sink = std::min<std::int64_t>(below(plan_.header.window_sink), causal);
    const std::int64_t before_window =
        std::max<std::int64_t>(below(t - plan_.header.window_size + 1), sink);
    return sink + std::max<std::int64_t>(causal - before_window, 0);
  }

  const Problem& problem_;
  const SparsePlan& plan_;
  const std::vector<TileStats>& stats_;
};

}  // namespace

WorkCounts& WorkCounts::operator+=(const WorkCounts& other) {
  executed_pairs += other.executed_pairs;
  folded_pairs += other.folded_pairs;
  dense_pairs += other.dense_pairs;
  visited_pairs += other.visited_pairs;
  causal_pairs += other.causal_pairs;
  return *this;
}

Work count_work(const Problem& problem, const SparsePlan& plan,
                const std::vector<TileStats>& stats) {
  Work work;
  work.per_head.resize(static_cast<std::size_t>(problem.num_q_heads));
  const WorkCounter counter(problem, plan, stats);
  // Plan heads own disjoint query heads, so they can be counted in parallel.
  parallel_for(plan.header.num_plan_heads, [&](std::int64_t head) {
    const int plan_head = static_cast<int>(head);
    for (int tile = 0; tile < plan.header.num_q_tiles; ++tile) {
      counter.add_dense(plan_head, tile, work.per_head);
      for (std::size_t p = 0; p < plan.passes.size(); ++p) {
        counter.add_tile(p, plan_head, tile, work.per_head);
      }
    }
  });
  for (WorkCounts& counts : work.per_head) {
    counts.causal_pairs = problem.causal_pairs();
    work.total += counts;
  }
  return work;
}

}  // namespace s2o
