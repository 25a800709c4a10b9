#include <map>
#include <memory>

#include "kernels/common/kernel_registry.h"
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

CudaAttention& device_attention(const std::string& variant) {
  static std::map<std::string, std::unique_ptr<CudaAttention>> instances;
  std::unique_ptr<CudaAttention>& instance = instances[variant];
  if (!instance) instance = std::make_unique<CudaAttention>(0, variant);
  return *instance;
}

DeviceInputs::DeviceInputs(const AttentionInput& input) {
  const KernelDType dtype =
      input.dtype == StorageDType::kF16 ? KernelDType::kFp16 : KernelDType::kBf16;
  q_ = to_16_bit(input.q, dtype);
  k_ = to_16_bit(input.k, dtype);
  v_ = to_16_bit(input.v, dtype);
  rows_ = {.q = q_.data(), .k = k_.data(), .v = v_.data(), .dtype = dtype};
}

KernelResult run_on_device(CudaAttention& attention, const AttentionInput& input,
                           const SparsePlan& plan, const RunOptions& options) {
  const DeviceInputs bits(input);
  attention.set_input(input.problem, bits.dtype(), bits.rows().q, bits.rows().k, bits.rows().v);
  attention.set_plan(PlanPointers(plan).view(), options);
  attention.poison_outputs();
  attention.run();
  KernelResult result;
  attention.read(result.out, result.lse, result.stats);
  return result;
}

}  // namespace s2o::testing
