// A plan of the host copied to the device. CUDA builds only.
#pragma once

#include <cstdint>
#include <vector>

#include "kernels/common/device_buffer.h"
#include "kernels/common/device_plan.h"
#include "kernels/common/problem.h"

namespace s2o {

class DevicePlanCopy {
 public:
  // Copies and waits for everything on the device; `plan` holds host pointers and may be released
  // afterwards. Error naming head, tile and index for a plan that points outside the problem.
  // `l2_bytes` of the device decides the order of tiles.
  DevicePlanCopy(const Problem& problem, const PlanView& plan, std::int64_t l2_bytes);

  // Valid as long as this object.
  const DevicePlan& plan() const { return plan_; }
  std::int64_t bytes() const;

 private:
  struct Pass {
    DeviceBuffer<std::int32_t> query_order, key_order, gather_indices, fold_end, tile_order;
    DeviceBuffer<std::int64_t> item_offsets;
    DeviceBuffer<PlanItem> items;
    DeviceBuffer<float> head_taus;
  };
  void copy_pass(const Problem& problem, const PassView& pass, std::int64_t l2_bytes);

  std::vector<Pass> passes_;
  DevicePlan plan_;
};

}  // namespace s2o
