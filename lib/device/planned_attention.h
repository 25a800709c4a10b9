// Planning and attention of one layer in one stream. CUDA builds only.
#pragma once

#include "kernels/attention/prepared_attention.h"
#include "lib/device/phase_timer.h"
#include "lib/plan/fetch_plan.h"
#include "lib/planning/device_planner.h"

namespace s2o {

// Planning kernels are built for these; inputs of another head_dim are planned on the host.
constexpr bool plans_on_device(const Problem& problem) {
  return problem.head_dim == 64 || problem.head_dim == 128;
}

// Enqueues planning and the attention prepared over its plan, batch by batch, into a measurement
// that has begun; neither allocates nor waits.
void enqueue_planned(DevicePlanner& planner, PlanningVariant variant, const DeviceInput& input,
                     const PreparedAttention& attention, CudaStream stream, PhaseTimer& timer);

// The plan that the planner last made for this input, on the host. Waits; plans once more where
// batches share memory.
SparsePlan fetch_device_plan(DevicePlanner& planner, PlanningVariant variant,
                             const DeviceInput& input, FetchedArrays arrays, CudaStream stream);

}  // namespace s2o
