#include <cuda_runtime.h>

#include <algorithm>
#include <vector>

#include "kernels/attention/launch_plan.h"
#include "kernels/attention/uploaded_plan.h"
#include "kernels/common/device_buffer.h"
#include "kernels/common/plan_bounds.h"

namespace s2o {
namespace {

// The arrays of one pass on the device.
struct DevicePass {
  DeviceBuffer<std::int32_t> query_order, key_order, gather_indices, fold_end, tile_order;
  DeviceBuffer<std::int64_t> item_offsets;
  DeviceBuffer<PlanItem> items;

  std::int64_t bytes() const {
    return query_order.size_bytes() + key_order.size_bytes() + gather_indices.size_bytes() +
           fold_end.size_bytes() + tile_order.size_bytes() + item_offsets.size_bytes() +
           items.size_bytes();
  }
};

void upload_or_clear(DeviceBuffer<std::int32_t>& buffer, const std::int32_t* source,
                     std::size_t count, const char* what) {
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

struct UploadedPlan::Memory {
  std::vector<DevicePass> passes;
  DevicePlan plan;

  void upload_pass(const Problem& problem, const PlanView& header, const PassView& pass,
                   std::int64_t l2_bytes, DevicePass& target) {
    const auto heads = static_cast<std::size_t>(header.num_plan_heads);
    const std::size_t slots = heads * static_cast<std::size_t>(problem.seqlen);
    const std::size_t num_tiles = heads * static_cast<std::size_t>(header.num_q_tiles);
    const std::int64_t num_items = pass.item_offsets[num_tiles];
    upload_or_clear(target.query_order, pass.query_order, slots, "plan: query order");
    upload_or_clear(target.key_order, pass.key_order, slots, "plan: key order");
    upload_or_clear(target.fold_end, pass.fold_end, num_tiles, "plan: fold ends");
    target.item_offsets.upload(pass.item_offsets, num_tiles + 1, "plan: item offsets");
    target.items.upload(pass.items, static_cast<std::size_t>(num_items), "plan: items");
    upload_or_clear(target.gather_indices, pass.gather_indices, gather_length(pass, num_items),
                    "plan: gather indices");
    target.tile_order.upload(tile_launch_order(problem, header, pass, l2_bytes),
                             "plan: tile order");
    plan.passes.push_back(
        {.query_order = pass.query_order == nullptr ? nullptr : target.query_order.data(),
         .key_order = pass.key_order == nullptr ? nullptr : target.key_order.data(),
         .item_offsets = target.item_offsets.data(),
         .items = target.items.data(),
         .gather_indices = target.gather_indices.data(),
         .fold_end = pass.fold_end == nullptr ? nullptr : target.fold_end.data()});
    plan.tile_orders.push_back(target.tile_order.data());
  }
};

UploadedPlan::UploadedPlan() : memory_(std::make_unique<Memory>()) {}
UploadedPlan::~UploadedPlan() = default;

void UploadedPlan::upload(const Problem& problem, const PlanView& plan, std::int64_t l2_bytes) {
  check_plan_bounds(problem, plan);
  Memory& memory = *memory_;
  memory.plan = {};
  memory.plan.header = plan;
  memory.plan.header.passes = nullptr;
  memory.passes.resize(static_cast<std::size_t>(plan.num_passes));
  for (int p = 0; p < plan.num_passes; ++p) {
    memory.upload_pass(problem, plan, plan.passes[p], l2_bytes,
                       memory.passes[static_cast<std::size_t>(p)]);
  }
  cuda_check(cudaDeviceSynchronize(), "upload of the plan");
}

void UploadedPlan::clear() { *memory_ = {}; }
const DevicePlan& UploadedPlan::device_plan() const { return memory_->plan; }

std::int64_t UploadedPlan::bytes() const {
  std::int64_t bytes = 0;
  for (const DevicePass& pass : memory_->passes) bytes += pass.bytes();
  return bytes;
}

}  // namespace s2o
