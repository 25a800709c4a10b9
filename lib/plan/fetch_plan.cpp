#include "lib/plan/fetch_plan.h"

#include <algorithm>
#include <limits>
#include <utility>
#include <vector>

namespace s2o {
namespace {

template <class T>
std::vector<T> fetch(const CopyToHost& copy, const T* source, std::int64_t count) {
  std::vector<T> target(source == nullptr ? 0 : static_cast<std::size_t>(count));
  if (!target.empty()) copy(target.data(), source, target.size() * sizeof(T));
  return target;
}

PlanPass fetch_whole(const Problem& problem, const PlanView& header, const PassView& pass,
                     const CopyToHost& copy) {
  const std::int64_t slots = header.num_plan_heads * problem.seqlen;
  PlanPass result;
  result.query_order = fetch(copy, pass.query_order, slots);
  result.key_order = fetch(copy, pass.key_order, slots);
  result.fold_end = fetch(copy, pass.fold_end,
                          static_cast<std::int64_t>(header.num_plan_heads) * header.num_q_tiles);
  result.head_taus = fetch(copy, pass.head_taus, header.num_plan_heads);
  return result;
}

// Items and tokens of one pass, gathered batch by batch.
class PassLists {
 public:
  PassLists(const DevicePlan& plan, std::size_t p, const CopyToHost& copy)
      : plan_(plan),
        pass_(plan.passes[p]),
        tile_order_(plan.tile_orders[p]),
        copy_(copy),
        tiles_(static_cast<std::size_t>(plan.header.num_plan_heads) *
               static_cast<std::size_t>(plan.header.num_q_tiles)),
        offsets_(fetch(copy, pass_.item_offsets, static_cast<std::int64_t>(tiles_.size()) + 1)) {}

  // The batch is in memory.
  void add(int batch, FetchedArrays arrays) {
    const auto counts = fetch(copy_, pass_.item_counts, static_cast<std::int64_t>(tiles_.size()));
    const auto items = fetch(copy_, pass_.items, offsets_.back());
    const std::int32_t begin = plan_.batch_begin(batch);
    std::int64_t first_token = std::numeric_limits<std::int64_t>::max();
    std::int64_t end_token = 0;
    const auto order = fetch(copy_, tile_order_ + begin, plan_.batch_end(batch) - begin);
    for (const std::int32_t tile : order) {
      const auto t = static_cast<std::size_t>(tile);
      const std::int64_t end = counts.empty() ? offsets_[t + 1] : offsets_[t] + counts[t];
      tiles_[t].assign(items.begin() + offsets_[t], items.begin() + end);
      for (const PlanItem& item : tiles_[t]) {
        if (item.kind != ItemKind::kGather) continue;
        first_token = std::min(first_token, item.begin);
        end_token = std::max(end_token, item.begin + item.count);
      }
    }
    if (arrays == FetchedArrays::kWithoutTokens || end_token == 0) return;
    const auto shift = static_cast<std::int64_t>(tokens_.size()) - first_token;
    for (const std::int32_t tile : order) {
      for (PlanItem& item : tiles_[static_cast<std::size_t>(tile)]) {
        if (item.kind == ItemKind::kGather) item.begin += shift;
      }
    }
    const auto tokens = fetch(copy_, pass_.gather_indices + first_token, end_token - first_token);
    tokens_.insert(tokens_.end(), tokens.begin(), tokens.end());
  }

  void move_to(PlanPass& pass) {
    std::size_t num_items = 0;
    for (const std::vector<PlanItem>& items : tiles_) num_items += items.size();
    pass.items.reserve(num_items);
    pass.item_offsets.assign(1, 0);
    for (std::vector<PlanItem>& items : tiles_) {
      pass.items.insert(pass.items.end(), items.begin(), items.end());
      pass.item_offsets.push_back(static_cast<std::int64_t>(pass.items.size()));
      items = {};  // plans of long sequences are large
    }
    pass.gather_indices = std::move(tokens_);
  }

 private:
  const DevicePlan& plan_;
  const PassView& pass_;
  const std::int32_t* tile_order_;
  const CopyToHost& copy_;
  std::vector<std::vector<PlanItem>> tiles_;
  std::vector<std::int64_t> offsets_;
  std::vector<std::int32_t> tokens_;
};

}  // namespace

SparsePlan fetch_plan(const Problem& problem, const DevicePlan& plan, const CopyToHost& copy,
                      FetchedArrays arrays, const PlanBatch& replan) {
  SparsePlan result(problem, plan.header.block_m, plan.header.block_n, plan.header.pack);
  result.header = plan.header;
  result.header.passes = nullptr;
  result.passes.clear();
  std::vector<PassLists> lists;
  bool shares_items = false;
  for (std::size_t p = 0; p < plan.passes.size(); ++p) {
    result.passes.push_back(fetch_whole(problem, plan.header, plan.passes[p], copy));
    lists.emplace_back(plan, p, copy);
    shares_items = shares_items || plan.passes[p].item_counts != nullptr;
  }
  const bool shares_wanted = shares_items || arrays == FetchedArrays::kAll;
  for (int batch = 0; batch < plan.num_batches(); ++batch) {
    if (plan.num_batches() > 1 && shares_wanted) replan(batch);
    for (PassLists& list : lists) list.add(batch, arrays);
  }
  for (std::size_t p = 0; p < lists.size(); ++p) lists[p].move_to(result.passes[p]);
  return result;
}

}  // namespace s2o
