#include "kernels/common/kernel_registry.h"

namespace s2o {
namespace {

std::string arch_text(int compute_capability) { return "sm_" + std::to_string(compute_capability); }

}  // namespace

const std::vector<KernelInfo>& all_kernels() {
  static const std::vector<KernelInfo> kKernels = {
#define S2O_KERNEL(op, variant, min_cc, max_cc, types, parts) \
  {#op "_" #variant, #op, #variant, min_cc, max_cc, types, parts},
#include "kernels/kernels.def"
#undef S2O_KERNEL
  };
  return kKernels;
}

std::string kernel_refusal(const KernelInfo& kernel, const DeviceInfo& device) {
  const int found = device.compute_capability;
  if (kernel.min_compute_capability == 0) return "runs on the CPU";
  if (found >= kernel.min_compute_capability && found <= kernel.max_compute_capability) return "";
  return "needs " + arch_text(kernel.min_compute_capability) +
         (kernel.max_compute_capability > kernel.min_compute_capability ? " or newer" : "") +
         ", device " + std::to_string(device.index) + " (" + device.name + ") is " +
         arch_text(found);
}

}  // namespace s2o
