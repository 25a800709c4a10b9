#include <map>

#include "kernels/attention/prepared_attention.h"
#include "kernels/common/device_input_copy.h"
#include "kernels/common/device_plan_copy.h"
#include "kernels/common/kernel_registry.h"
#include "kernels/common/stream.h"
#include "lib/testing/device_runner.h"
#include "lib/testing/model_runner.h"

namespace s2o::testing {

std::string device_refusal(const std::string& variant) {
  const CudaStatus status = query_cuda();
  if (!status.problem.empty()) return status.problem;
  for (const KernelInfo& kernel : all_kernels()) {
    if (kernel.op == "attention" && kernel.variant == variant) {
      return kernel_refusal(kernel, status.devices[0]);
    }
  }
  return "there is no attention kernel " + variant;
}

const CudaDevice& device_with(const std::string& variant) {
  static std::map<std::string, CudaDevice> devices;
  const auto known = devices.find(variant);
  if (known != devices.end()) return known->second;
  return devices.emplace(variant, open_cuda_device(0, variant)).first->second;
}

DeviceInputs::DeviceInputs(const AttentionInput& input) {
  const KernelDType dtype =
      input.dtype == StorageDType::kF16 ? KernelDType::kFp16 : KernelDType::kBf16;
  q_ = to_16_bit(input.q, dtype);
  k_ = to_16_bit(input.k, dtype);
  v_ = to_16_bit(input.v, dtype);
  rows_ = {.q = q_.data(), .k = k_.data(), .v = v_.data(), .dtype = dtype};
}

KernelResult run_on_device(const CudaDevice& device, const AttentionInput& input,
                           const SparsePlan& plan, const DeviceRunOptions& options) {
  const DeviceInputs bits(input);
  const Stream stream;
  const DeviceInputCopy q_k_v(input.problem, bits.dtype(), bits.rows().q, bits.rows().k,
                              bits.rows().v);
  const DevicePlanCopy plan_copy(input.problem, PlanPointers(plan).view(), device.info.l2_bytes);
  AttentionBuffers buffers(input.problem, plan_copy.plan().header, options.output);
  AttentionScratch scratch;
  const PreparedAttention attention(device.info, device.attention, q_k_v.input(), plan_copy.plan(),
                                    buffers.output(), scratch, options.fp32_accuracy,
                                    options.quantise);
  buffers.poison(stream.get());
  attention.enqueue_quantise(stream.get());
  attention.enqueue(stream.get());
  stream.synchronize();
  attention.check_quantised();
  return {.out = buffers.read_out(bits.dtype()),
          .lse = buffers.read_lse(),
          .stats = buffers.read_stats()};
}

}  // namespace s2o::testing
