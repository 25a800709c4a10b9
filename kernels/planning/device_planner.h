// Planners that run on the device: they leave the arrays of a plan in device memory, ready for the
// attention kernels, without the host looking at them. Host-safe.
#pragma once

#include <cstdint>
#include <vector>

#include "kernels/attention/attention_launch.h"
#include "kernels/common/plan_view.h"
#include "kernels/common/problem.h"

namespace s2o {

// One layer on the device.
struct DeviceInput {
  Problem problem;
  KernelDType dtype = KernelDType::kBf16;
  const void* q = nullptr;  // [num_q_heads, seqlen, head_dim], 16-bit
  const void* k = nullptr;  // [num_kv_heads, seqlen, head_dim], 16-bit
  const void* v = nullptr;  // [num_kv_heads, seqlen, head_dim], 16-bit
};

// A plan whose arrays are on the device.
struct DevicePlan {
  PlanView header;               // passes is null
  std::vector<PassView> passes;  // device pointers
  // Per pass: plan_head * num_q_tiles + tile in launch order, [num_plan_heads * num_q_tiles].
  std::vector<const std::int32_t*> tile_orders;
};

// What planning must at least compute and move, to be set against the measured time.
struct PlanningCost {
  double flops = 0.0;
  double bytes = 0.0;  // device memory read and written, each array once per use
};

class DevicePlanner {
 public:
  virtual ~DevicePlanner() = default;
  // Device bytes that prepare() allocates.
  virtual std::int64_t workspace_bytes() const = 0;
  virtual PlanningCost cost() const = 0;
  // Allocates, and writes what does not depend on Q and K: items, tile order, offsets.
  virtual void prepare() = 0;
  // Enqueues the planning of one layer of the shape given at construction. Neither allocates nor
  // waits.
  virtual void plan(const DeviceInput& input, CudaStream stream) = 0;
  // Valid after prepare(); the arrays hold a plan once the work of plan() is done.
  virtual DevicePlan device_plan() const = 0;
  // After the stream was waited for: throws Error naming what a kernel found wrong.
  virtual void check() const = 0;
};

}  // namespace s2o
