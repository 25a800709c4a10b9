// Runs a plan through the source of a device kernel on the CPU model (simt.h): the host side packs
// tensors, orders tiles and builds arguments exactly as for a device. Tests only.
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "kernels/attention/kernel_args.h"
#include "kernels/attention/launch_plan.h"
#include "kernels/testing/compare.h"

namespace s2o::testing {

// 16-bit copies of fp32 values that are representable in the type.
std::vector<std::uint16_t> to_16_bit(const std::vector<float>& values, KernelDType dtype);

// Launches one pass; all pointers are set.
using PassLauncher = std::function<void(const AttentionKernelArgs& args)>;
// Launches the folded columns of a pass, after it.
struct ModelLaunchers {
  PassLauncher pass;
  PassLauncher fold;  // may be empty when no plan of the test folds
};

// Outputs are poisoned with NaN first. All passes write fp32.
KernelResult run_on_model(const AttentionInput& input, const SparsePlan& plan, KernelDType dtype,
                          const ModelLaunchers& launchers);

}  // namespace s2o::testing
