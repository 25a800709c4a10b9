#include "lib/device/planned_attention.h"

namespace s2o {

void enqueue_planned(DevicePlanner& planner, PlanningVariant variant, const DeviceInput& input,
                     const PreparedAttention& attention, CudaStream stream, PhaseTimer& timer) {
  timer.enter(Phase::kPlanning);
  attention.enqueue_quantise(stream);
  for (int batch = 0; batch < planner.num_batches(); ++batch) {
    timer.enter(Phase::kPlanning);
    planner.plan_batch(batch, input, stream, variant);
    timer.enter(Phase::kAttention);
    attention.enqueue_batch(batch, stream);
  }
}

SparsePlan fetch_device_plan(DevicePlanner& planner, PlanningVariant variant,
                             const DeviceInput& input, FetchedArrays arrays, CudaStream stream) {
  cuda_check(cudaStreamSynchronize(stream), "wait for the plan");
  const CopyToHost copy = [](void* target, const void* source, std::size_t bytes) {
    cuda_check(cudaMemcpy(target, source, bytes, cudaMemcpyDeviceToHost), "fetch the plan");
  };
  const PlanBatch replan = [&](int batch) {
    planner.plan_batch(batch, input, stream, variant);
    cuda_check(cudaStreamSynchronize(stream), "plan once more");
  };
  return fetch_plan(input.problem, planner.device_plan(), copy, arrays, replan);
}

}  // namespace s2o
