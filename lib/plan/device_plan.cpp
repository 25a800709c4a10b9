#include "lib/plan/device_plan.h"

#include <algorithm>

namespace s2o {
namespace {

template <class T>
std::vector<T> fetch(const CopyToHost& copy, const T* source, std::int64_t count) {
  std::vector<T> target(source == nullptr ? 0 : static_cast<std::size_t>(count));
  if (!target.empty()) copy(target.data(), source, target.size() * sizeof(T));
  return target;
}

// Items as the planner left them, of all batches.
PlanPass fetch_pass(const Problem& problem, const PlanView& header, const PassView& pass,
                    const CopyToHost& copy) {
  const std::int64_t num_tiles =
      static_cast<std::int64_t>(header.num_plan_heads) * header.num_q_tiles;
  const std::int64_t slots = header.num_plan_heads * problem.seqlen;
  PlanPass result;
  result.query_order = fetch(copy, pass.query_order, slots);
  result.key_order = fetch(copy, pass.key_order, slots);
  result.fold_end = fetch(copy, pass.fold_end, num_tiles);
  const auto offsets = fetch(copy, pass.item_offsets, num_tiles + 1);
  const auto counts = fetch(copy, pass.item_counts, num_tiles);
  const auto items = fetch(copy, pass.items, offsets.back());

  result.item_offsets.assign(1, 0);
  for (std::int64_t tile = 0; tile < num_tiles; ++tile) {
    const auto t = static_cast<std::size_t>(tile);
    const std::int64_t end = counts.empty() ? offsets[t + 1] : offsets[t] + counts[t];
    result.items.insert(result.items.end(), items.begin() + offsets[t], items.begin() + end);
    result.item_offsets.push_back(static_cast<std::int64_t>(result.items.size()));
  }
  return result;
}

// Appends the tokens of a batch, which its planner has just left, and points its items to them.
void append_tokens(const DevicePlan& plan, std::size_t p, int batch, const CopyToHost& copy,
                   PlanPass& pass) {
  const std::int32_t begin = plan.batch_begin(batch);
  const auto tiles = fetch(copy, plan.tile_orders[p] + begin, plan.batch_end(batch) - begin);
  const auto shift = static_cast<std::int64_t>(pass.gather_indices.size());
  std::int64_t num_tokens = 0;
  for (const std::int32_t tile : tiles) {
    const auto t = static_cast<std::size_t>(tile);
    for (std::int64_t i = pass.item_offsets[t]; i < pass.item_offsets[t + 1]; ++i) {
      PlanItem& item = pass.items[static_cast<std::size_t>(i)];
      if (item.kind != ItemKind::kGather) continue;
      num_tokens = std::max(num_tokens, item.begin + item.count);
      item.begin += shift;
    }
  }
  const auto tokens = fetch(copy, plan.passes[p].gather_indices, num_tokens);
  pass.gather_indices.insert(pass.gather_indices.end(), tokens.begin(), tokens.end());
}

}  // namespace

SparsePlan fetch_plan(const Problem& problem, const DevicePlan& plan, const CopyToHost& copy,
                      FetchedArrays arrays, const PlanBatch& replan) {
  SparsePlan result(problem, plan.header.block_m, plan.header.block_n, plan.header.pack);
  result.header = plan.header;
  result.header.passes = nullptr;
  result.passes.clear();
  for (const PassView& pass : plan.passes) {
    result.passes.push_back(fetch_pass(problem, plan.header, pass, copy));
  }
  if (arrays == FetchedArrays::kWithoutTokens) return result;
  for (int batch = 0; batch < plan.num_batches(); ++batch) {
    if (plan.num_batches() > 1) replan(batch);
    for (std::size_t p = 0; p < result.passes.size(); ++p) {
      append_tokens(plan, p, batch, copy, result.passes[p]);
    }
  }
  return result;
}

}  // namespace s2o
