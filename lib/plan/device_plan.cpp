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

PlanPass fetch_pass(const Problem& problem, const PlanView& header, const PassView& pass,
                    const CopyToHost& copy, FetchedArrays arrays) {
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
  std::int64_t num_tokens = 0;
  for (std::int64_t tile = 0; tile < num_tiles; ++tile) {
    const auto t = static_cast<std::size_t>(tile);
    const std::int64_t end = counts.empty() ? offsets[t + 1] : offsets[t] + counts[t];
    for (std::int64_t i = offsets[t]; i < end; ++i) {
      const PlanItem& item = items[static_cast<std::size_t>(i)];
      if (item.kind == ItemKind::kGather)
        num_tokens = std::max(num_tokens, item.begin + item.count);
      result.items.push_back(item);
    }
    result.item_offsets.push_back(static_cast<std::int64_t>(result.items.size()));
  }
  if (arrays == FetchedArrays::kAll) {
    result.gather_indices = fetch(copy, pass.gather_indices, num_tokens);
  }
  return result;
}

}  // namespace

SparsePlan fetch_plan(const Problem& problem, const DevicePlan& plan, const CopyToHost& copy,
                      FetchedArrays arrays) {
  SparsePlan result(problem, plan.header.block_m, plan.header.block_n, plan.header.pack);
  result.header = plan.header;
  result.header.passes = nullptr;
  result.passes.clear();
  for (const PassView& pass : plan.passes) {
    result.passes.push_back(fetch_pass(problem, plan.header, pass, copy, arrays));
  }
  return result;
}

}  // namespace s2o
