// One method with its settings on one shape of input: plans on the device where the method has code
// for it, else on the host, and runs attention over the plan. CUDA builds only.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "kernels/attention/prepared_attention.h"
#include "kernels/common/device_plan_copy.h"
#include "lib/device/cuda_device.h"
#include "lib/device/phase_timer.h"
#include "lib/methods/method.h"
#include "lib/plan/sparse_plan.h"
#include "lib/plan/work.h"
#include "lib/planning/device_planner.h"

namespace s2o {

// What a run did, on the host.
struct CountedRun {
  WorkCounts work;
  std::vector<TileStats> stats;  // [num_passes, num_plan_heads, num_q_tiles]
  int num_plan_heads = 0;
  int num_q_tiles = 0;
};

// The same arrays, seen from some heads.
DeviceInput head_slice(const DeviceInput& input, const HeadRange& q_heads);

class PlannedMethod {
 public:
  // Allocates; makes a plan that depends on the shape alone. UnsupportedError for settings that
  // cannot run on the problem, or with the bytes needed and free.
  // `head_params` as in PlanContext; `owns_scratch` as DevicePlanner::prepare.
  PlannedMethod(const CudaDevice& device, const Problem& problem, StorageDType dtype,
                const Method& method, const ParamSet& params, const PlannerLimits& limits,
                const std::vector<ParamSet>& head_params = {}, bool owns_scratch = true);
  ~PlannedMethod();
  PlannedMethod(const PlannedMethod&) = delete;
  PlannedMethod& operator=(const PlannedMethod&) = delete;

  // As DevicePlanner; 0 bytes for methods that are planned on the host.
  std::int64_t scratch_bytes() const { return planner_ == nullptr ? 0 : planner_->scratch_bytes(); }
  void use_scratch(void* scratch) {
    if (planner_ != nullptr) planner_->use_scratch(scratch);
  }
  int num_batches() const { return planner_ == nullptr ? 1 : planner_->num_batches(); }
  // "cuda", "cpu" or "none" (the plan depends on the shape alone), as in results.
  const char* planner() const;

  // Enqueues planning and attention. `output` needs no stats. Waits for the device only where the
  // method has no code on it, and when an array grows. A timer, if any, is in a measurement.
  void enqueue(const DeviceInput& input, AttentionOutput output, AttentionScratch& scratch,
               CudaStream stream, PhaseTimer* timer = nullptr);
  // The halves of enqueue(), for plans in one batch: Error otherwise. attend() may follow a plan()
  // as often as wanted.
  void plan(const DeviceInput& input, AttentionScratch& scratch, CudaStream stream);
  void attend(const DeviceInput& input, AttentionOutput output, AttentionScratch& scratch,
              CudaStream stream);

  // Waits; InputError naming the row where a score was not finite, UnsupportedError naming the head
  // that cannot be quantised.
  void check(CudaStream stream) const;
  // Waits, and counts what was enqueued last. `input` is as it was then.
  CountedRun count(const DeviceInput& input, CudaStream stream);

  // Attention in 8 bits: its operands lie in scratch between enqueue_quantise and attention.
  bool quantises() const;

  // Device memory of plans and of planning, but for scratch of others.
  std::int64_t plan_bytes() const;
  // And of the attention enqueued last, beyond q, k, v, out and lse.
  std::int64_t workspace_bytes() const { return workspace_bytes_; }

 private:
  void plan_on_host(const DeviceInput& input, AttentionScratch& scratch, CudaStream stream);
  PreparedAttention prepare(const DeviceInput& input, AttentionOutput output,
                            AttentionScratch& scratch);
  DevicePlan device_plan() const;

  const CudaDevice device_;
  const Problem problem_;
  const StorageDType dtype_;
  const Method& method_;
  const ParamSet params_;
  const std::vector<ParamSet> head_params_;
  const bool owns_scratch_;
  std::unique_ptr<DevicePlanner> planner_;  // null: planned on the host
  std::optional<SparsePlan> host_plan_;
  std::optional<DevicePlanCopy> copied_;  // host_plan_ on the device
  DeviceBuffer<TileStats> stats_;         // of what was enqueued last
  DeviceBuffer<float> head_scales_;       // likewise, of quantised input
  std::int64_t workspace_bytes_ = 0;
};

}  // namespace s2o
