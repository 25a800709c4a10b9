#include "kernels/common/kernel_registry.h"

#include "kernels/common/error.h"

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

const KernelInfo& choose_kernel(const std::string& op, const DeviceInfo& device,
                                const std::string& variant) {
  std::string refusals;
  std::string variants;
  for (auto kernel = all_kernels().rbegin(); kernel != all_kernels().rend(); ++kernel) {
    if (kernel->op != op || kernel->min_compute_capability == 0) continue;
    variants = kernel->variant + (variants.empty() ? "" : " and " + variants);
    if (!variant.empty() && kernel->variant != variant) continue;
    const std::string refusal = kernel_refusal(*kernel, device);
    if (refusal.empty()) return *kernel;
    refusals += (refusals.empty() ? "" : "; ") + kernel->name + " " + refusal;
  }
  if (refusals.empty()) {
    throw UnsupportedError("no " + op + " kernel '" + variant + "' for CUDA, there are " +
                           variants);
  }
  throw UnsupportedError(refusals);
}

}  // namespace s2o
