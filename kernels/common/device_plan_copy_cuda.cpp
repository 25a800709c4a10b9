#include <algorithm>

#include "kernels/common/device_plan_copy.h"
#include "kernels/common/plan_bounds.h"
#include "kernels/common/tile_order.h"

namespace s2o {
namespace {

template <class T>
void upload_or_clear(DeviceBuffer<T>& buffer, const T* source, std::size_t count,
                     const char* what) {
  buffer.upload(source, source == nullptr ? 0 : count, what);
}

// Entries of gather_indices that the items use.
std::size_t gather_length(const PassView& pass, std::int64_t num_items) {
  std::int64_t length = 0;
  for (std::int64_t i = 0; i < num_items; ++i) {
    if (pass.items[i].kind != ItemKind::kGather) continue;
    length = std::max(length, pass.items[i].begin + pass.items[i].count);
  }
  return static_cast<std::size_t>(length);
}

}  // namespace

DevicePlanCopy::DevicePlanCopy(const Problem& problem, const PlanView& plan,
                               std::int64_t l2_bytes) {
  check_plan_bounds(problem, plan);
  plan_.header = plan;
  plan_.header.passes = nullptr;
  for (int p = 0; p < plan.num_passes; ++p) copy_pass(problem, plan.passes[p], l2_bytes);
  cuda_check(cudaDeviceSynchronize(), "upload of the plan");
}

void DevicePlanCopy::copy_pass(const Problem& problem, const PassView& pass,
                               std::int64_t l2_bytes) {
  Pass& target = passes_.emplace_back();
  const auto heads = static_cast<std::size_t>(plan_.header.num_plan_heads);
  const std::size_t slots = heads * static_cast<std::size_t>(problem.seqlen);
  const std::size_t num_tiles = heads * static_cast<std::size_t>(plan_.header.num_q_tiles);
  const std::int64_t num_items = pass.item_offsets[num_tiles];
  upload_or_clear(target.query_order, pass.query_order, slots, "plan: query order");
  upload_or_clear(target.key_order, pass.key_order, slots, "plan: key order");
  upload_or_clear(target.fold_end, pass.fold_end, num_tiles, "plan: fold ends");
  upload_or_clear(target.head_taus, pass.head_taus, heads, "plan: tau of heads");
  target.item_offsets.upload(pass.item_offsets, num_tiles + 1, "plan: item offsets");
  target.items.upload(pass.items, static_cast<std::size_t>(num_items), "plan: items");
  upload_or_clear(target.gather_indices, pass.gather_indices, gather_length(pass, num_items),
                  "plan: gather indices");
  target.tile_order.upload(tile_launch_order(problem, plan_.header, pass, l2_bytes),
                           "plan: tile order");
  plan_.passes.push_back(
      {.query_order = pass.query_order == nullptr ? nullptr : target.query_order.data(),
       .key_order = pass.key_order == nullptr ? nullptr : target.key_order.data(),
       .item_offsets = target.item_offsets.data(),
       .items = target.items.data(),
       .gather_indices = target.gather_indices.data(),
       .fold_end = pass.fold_end == nullptr ? nullptr : target.fold_end.data(),
       .head_taus = pass.head_taus == nullptr ? nullptr : target.head_taus.data()});
  plan_.tile_orders.push_back(target.tile_order.data());
}

std::int64_t DevicePlanCopy::bytes() const {
  std::int64_t bytes = 0;
  for (const Pass& pass : passes_) {
    bytes += pass.query_order.size_bytes() + pass.key_order.size_bytes() +
             pass.gather_indices.size_bytes() + pass.fold_end.size_bytes() +
             pass.tile_order.size_bytes() + pass.item_offsets.size_bytes() +
             pass.items.size_bytes() + pass.head_taus.size_bytes();
  }
  return bytes;
}

}  // namespace s2o
