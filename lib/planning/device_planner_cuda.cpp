#include "lib/planning/device_planner.h"

#include <cuda_runtime.h>

#include <string>
#include <utility>

#include "kernels/common/device_buffer.h"
#include "kernels/common/kernel_registry.h"
#include "kernels/planning/cuda_planning_kernels.h"

namespace s2o {

PlanningVariant planning_variant(const DeviceInfo& device, const std::string& variant) {
  return choose_kernel("planning", device, variant).variant == "sm90" ? PlanningVariant::kSm90
                                                                      : PlanningVariant::kSm80;
}

struct DevicePlanner::Memory {
  DeviceBytes constants;
  DeviceBytes scratch;
};

DevicePlanner::DevicePlanner(std::unique_ptr<Planner> planner)
    : planner_(std::move(planner)), memory_(std::make_unique<Memory>()) {}
DevicePlanner::~DevicePlanner() = default;

std::int64_t DevicePlanner::workspace_bytes() const { return planner_->workspace().bytes(); }
PlanningCost DevicePlanner::cost() const { return planner_->cost(); }

void DevicePlanner::prepare(bool owns_scratch) {
  Workspace& workspace = planner_->workspace();
  memory_->constants.reserve(static_cast<std::size_t>(workspace.constant_bytes()),
                             "planning: constants");
  if (owns_scratch) {
    memory_->scratch.reserve(static_cast<std::size_t>(workspace.scratch_bytes()), "planning");
  }
  workspace.bind(memory_->constants.data(), memory_->scratch.data());
  for (const Workspace::Constant& constant : workspace.constants()) {
    if (constant.bytes.empty()) continue;
    cuda_check(cudaMemcpy(static_cast<std::byte*>(workspace.base()) + constant.offset,
                          constant.bytes.data(), constant.bytes.size(), cudaMemcpyHostToDevice),
               "planning: copy of constants");
  }
  workspace.forget_constants();
  cuda_check(cudaDeviceSynchronize(), "planning: set-up");
}

void DevicePlanner::plan(const DeviceInput& input, CudaStream stream, PlanningVariant variant) {
  CudaPlanningKernels kernels(stream, variant);
  plan(input, kernels);
}
void DevicePlanner::plan(const DeviceInput& input, PlanningKernels& kernels) {
  for (int batch = 0; batch < num_batches(); ++batch) plan_batch(batch, input, kernels);
}

int DevicePlanner::num_batches() const { return planner_->num_batches(); }
void DevicePlanner::plan_batch(int batch, const DeviceInput& input, CudaStream stream,
                               PlanningVariant variant) {
  CudaPlanningKernels kernels(stream, variant);
  plan_batch(batch, input, kernels);
}
void DevicePlanner::plan_batch(int batch, const DeviceInput& input, PlanningKernels& kernels) {
  if (batch == 0) {
    planner_->plan(input, kernels);
  } else {
    planner_->plan_next(batch, input, kernels);
  }
}

std::int64_t DevicePlanner::scratch_bytes() const { return planner_->workspace().scratch_bytes(); }
void DevicePlanner::use_scratch(void* scratch) {
  planner_->workspace().bind(memory_->constants.data(), scratch);
}

DevicePlan DevicePlanner::device_plan() const { return planner_->device_plan(); }

void DevicePlanner::check() const {
  if (planner_->error_word() == nullptr) return;
  std::uint32_t bad = 0;
  cuda_check(cudaMemcpy(&bad, planner_->error_word(), sizeof(bad), cudaMemcpyDeviceToHost),
             "planning: error word");
  if (bad != 0) {
    throw Error("planning: " + planner_->row_name(static_cast<std::int64_t>(~bad)) +
                ": a score is not finite");
  }
}

}  // namespace s2o
