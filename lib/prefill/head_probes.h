// What settings would cost and lose on single heads of the layer at hand. CUDA builds only.
#pragma once

#include <memory>
#include <span>
#include <vector>

#include "kernels/common/device_buffer.h"
#include "kernels/error_sum/error_sum.h"
#include "lib/device/cuda_device.h"
#include "lib/device/phase_timer.h"
#include "lib/device/planned_method.h"
#include "lib/prefill/prefill_backend.h"

namespace s2o {

// Every setting is planned and run on all heads at once, which says how long they take together,
// and then on each alone, which says how they share that time.
class HeadProbes {
 public:
  // Allocates. UnsupportedError as PlannedMethod.
  HeadProbes(const CudaDevice& device, CudaStream stream, const Problem& problem,
             StorageDType dtype, const ProbeRequest& request);

  // [settings, num_q_heads] of Q, K and V. Waits.
  std::vector<std::vector<HeadProbe>> measure(const DeviceInput& input);

 private:
  struct Probe {
    std::unique_ptr<PlannedMethod> all;  // on all heads
    std::unique_ptr<PlannedMethod> one;  // on one head
    bool is_warm = false;
  };
  struct Times {
    double plan_ms = 0.0;
    double attention_ms = 0.0;
  };
  Times run(PlannedMethod& method, const DeviceInput& input, AttentionOutput output);

  const ProbeRequest& request_;
  const Problem problem_;
  const CudaStream stream_;
  PhaseTimer timer_;
  PlannedMethod dense_;
  std::vector<Probe> probes_;
  AttentionScratch scratch_;
  DeviceBuffer<float> reference_, out_;           // [num_q_heads, seqlen, head_dim]
  DeviceBuffer<float> reference_lse_, lse_;       // [num_q_heads, seqlen]
  std::vector<float> host_reference_, host_lse_;  // of the same
  DeviceBuffer<ErrorSums> partial_, sums_;
};

}  // namespace s2o
