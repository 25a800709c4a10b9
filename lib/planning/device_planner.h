// Runs a planner on a CUDA device: owns its memory and enqueues its kernels. Host-safe header;
// exists in CUDA builds (S2O_HAS_CUDA).
#pragma once

#include <cstdint>
#include <memory>

#include "kernels/common/cuda_stream.h"
#include "kernels/common/device_info.h"
#include "lib/planning/planner.h"

namespace s2o {

// The kernels for a device, or the variant named ("sm80", "sm90"; "" for the best). Throws
// UnsupportedError when they do not run on it.
PlanningVariant planning_variant(const DeviceInfo& device, const std::string& variant);

class DevicePlanner {
 public:
  explicit DevicePlanner(std::unique_ptr<Planner> planner);
  ~DevicePlanner();
  DevicePlanner(const DevicePlanner&) = delete;
  DevicePlanner& operator=(const DevicePlanner&) = delete;

  // Device bytes that prepare() allocates.
  std::int64_t workspace_bytes() const;
  PlanningCost cost() const;
  // Allocates, and copies what does not depend on Q and K. UnsupportedError with the bytes needed
  // and free. Without scratch of its own, use_scratch() comes before a plan.
  void prepare(bool owns_scratch = true);
  // What planners that run one after the other can share, from a plan to its check.
  std::int64_t scratch_bytes() const;
  void use_scratch(void* scratch);
  // Enqueues the planning of one layer, all batches (planner.h) one after the other: the last one
  // stays. Neither allocates nor waits.
  void plan(const DeviceInput& input, CudaStream stream, PlanningVariant variant);
  // The same through kernels of the caller.
  void plan(const DeviceInput& input, PlanningKernels& kernels);
  int num_batches() const;
  // One batch: attention over it must be enqueued before the next. Batches follow each other from
  // 0 on.
  void plan_batch(int batch, const DeviceInput& input, CudaStream stream, PlanningVariant variant);
  // Valid after prepare().
  DevicePlan device_plan() const;
  // After the stream was waited for: throws Error naming the row with a score that is not finite.
  void check() const;

 private:
  struct Memory;
  void plan_batch(int batch, const DeviceInput& input, PlanningKernels& kernels);

  std::unique_ptr<Planner> planner_;
  std::unique_ptr<Memory> memory_;
};

}  // namespace s2o
