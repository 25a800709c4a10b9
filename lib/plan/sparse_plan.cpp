#include "lib/plan/sparse_plan.h"

#include <algorithm>

namespace s2o {

SparsePlan::SparsePlan(const Problem& problem, int block_m, int block_n, int pack) : passes(1) {
  header.block_m = block_m;
  header.block_n = block_n;
  header.pack = pack;
  header.num_plan_heads = problem.num_q_heads / pack;
  header.num_q_tiles = static_cast<int>((problem.seqlen * pack + block_m - 1) / block_m);
}

std::int64_t SparsePlan::workspace_bytes() const {
  std::size_t bytes = 0;
  for (const PlanPass& pass : passes) {
    bytes += pass.query_order.size() * sizeof(std::int32_t);
    bytes += pass.key_order.size() * sizeof(std::int32_t);
    bytes += pass.item_offsets.size() * sizeof(std::int64_t);
    bytes += pass.items.size() * sizeof(PlanItem);
    bytes += pass.gather_indices.size() * sizeof(std::int32_t);
    bytes += pass.fold_end.size() * sizeof(std::int32_t);
    bytes += pass.head_taus.size() * sizeof(float);
  }
  return static_cast<std::int64_t>(bytes);
}

PlanPointers::PlanPointers(const SparsePlan& plan) : view_(plan.header) {
  const auto pointer_or_null = [](const auto& array) {
    return array.empty() ? nullptr : array.data();
  };
  for (const PlanPass& pass : plan.passes) {
    passes_.push_back({.query_order = pointer_or_null(pass.query_order),
                       .key_order = pointer_or_null(pass.key_order),
                       .item_offsets = pass.item_offsets.data(),
                       .items = pass.items.data(),
                       .gather_indices = pointer_or_null(pass.gather_indices),
                       .fold_end = pointer_or_null(pass.fold_end),
                       .head_taus = pointer_or_null(pass.head_taus)});
  }
  view_.passes = passes_.data();
  view_.num_passes = static_cast<int>(passes_.size());
}

PlanBuilder::PlanBuilder(const SparsePlan& plan)
    : num_q_tiles_(plan.header.num_q_tiles), tiles_(static_cast<std::size_t>(plan.num_tiles())) {}

void PlanBuilder::add(int plan_head, int tile, const PlanItem& item) {
  tiles_[static_cast<std::size_t>(plan_head) * num_q_tiles_ + tile].push_back(item);
}

void PlanBuilder::finish(PlanPass& pass) {
  pass.item_offsets.assign(1, 0);
  pass.items.clear();
  for (const std::vector<PlanItem>& tile : tiles_) {
    pass.items.insert(pass.items.end(), tile.begin(), tile.end());
    pass.item_offsets.push_back(static_cast<std::int64_t>(pass.items.size()));
  }
}

TileRows tile_rows(const Problem& problem, const PlanView& plan, int tile) {
  TileRows rows;
  rows.first_slot = static_cast<std::int64_t>(tile) * plan.block_m;
  rows.end_slot = std::min(rows.first_slot + plan.block_m, problem.seqlen * plan.pack);
  rows.first_position = rows.first_slot / plan.pack;
  rows.last_position = (rows.end_slot - 1) / plan.pack;
  return rows;
}

SparsePlan dense_plan(const Problem& problem, int block_m, int block_n) {
  SparsePlan plan(problem, block_m, block_n);
  PlanBuilder builder(plan);
  for (int head = 0; head < plan.header.num_plan_heads; ++head) {
    for (int tile = 0; tile < plan.header.num_q_tiles; ++tile) {
      const TileRows rows = tile_rows(problem, plan.header, tile);
      builder.add(head, tile,
                  {.begin = 0,
                   .count = static_cast<std::int32_t>(rows.last_position + 1),
                   .kind = ItemKind::kRun,
                   .mask = MaskClass::kCausal});
    }
  }
  builder.finish(plan.passes[0]);
  return plan;
}

void add_key_blocks(const Problem& problem, const SparsePlan& plan, PlanBuilder& builder,
                    int plan_head, int tile, const std::uint8_t* selected, int block) {
  const TileRows rows = tile_rows(problem, plan.header, tile);
  const std::int64_t num_blocks = rows.last_position / block + 1;  // blocks with a causal key
  for (std::int64_t b = 0; b < num_blocks;) {
    if (selected[b] == 0) {
      ++b;
      continue;
    }
    // A run keeps one mask class, so that only tiles at the diagonal pay for a mask.
    const bool past = (b + 1) * block <= rows.first_position + 1;
    std::int64_t end = b + 1;
    while (end < num_blocks && selected[end] != 0 &&
           ((end + 1) * block <= rows.first_position + 1) == past) {
      ++end;
    }
    const std::int64_t begin_key = b * block;
    const std::int64_t end_key = std::min(end * block, problem.seqlen);
    builder.add(plan_head, tile,
                {.begin = begin_key,
                 .count = static_cast<std::int32_t>(end_key - begin_key),
                 .kind = ItemKind::kRun,
                 .mask = past ? MaskClass::kNone : MaskClass::kCausal});
    b = end;
  }
}

}  // namespace s2o
