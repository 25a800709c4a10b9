// The kernels of kernels.def, and whether they run on a device. Host-safe.
#pragma once

#include <string>
#include <vector>

#include "kernels/common/device_info.h"

namespace s2o {

struct KernelInfo {
  std::string name;  // "attention_sm90"
  std::string op;
  std::string variant;
  int min_compute_capability = 0;  // 0: runs on the CPU
  int max_compute_capability = 0;
  std::string element_types;
  std::string plan_parts;
};

// All kernels, in the order of kernels.def.
const std::vector<KernelInfo>& all_kernels();

// "" if the kernel runs on a device of this compute capability, else what it needs.
std::string kernel_refusal(const KernelInfo& kernel, const DeviceInfo& device);

// The best kernel of an operation that runs on the device, or the variant named. UnsupportedError
// says why there is none.
const KernelInfo& choose_kernel(const std::string& op, const DeviceInfo& device,
                                const std::string& variant);

}  // namespace s2o
