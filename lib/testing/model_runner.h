// Runs a plan through the source of a device kernel on the CPU model (simt.h): the host side packs
// tensors, orders tiles and builds arguments exactly as for a device. Tests only.
#pragma once

#include <cstdint>
#include <vector>

#include "kernels/attention/kernel_choice.h"
#include "kernels/attention/quantise_rule.h"
#include "kernels/common/dtype.h"
#include "lib/testing/compare.h"

namespace s2o::testing {

// 16-bit copies of fp32 values that are representable in the type.
std::vector<std::uint16_t> to_16_bit(const std::vector<float>& values, KernelDType dtype);

// Outputs are poisoned with NaN first; all passes write fp32, or the last one the type of the input
// (`output_16`, for plans that fold nothing). Folded columns run after their pass. `fp32_accuracy`
// as in choose_tile; `seed` decides the schedule.
KernelResult run_on_model(AttentionKernel kernel, const AttentionInput& input,
                          const SparsePlan& plan, bool fp32_accuracy, std::uint64_t seed);
KernelResult run_on_model(AttentionKernel kernel, const AttentionInput& input, const PlanView& plan,
                          bool fp32_accuracy, std::uint64_t seed, bool output_16 = false);

// Of bf16 input in 8 bits (quantised_input.h), tiles of 128 queries; plans without folded columns.
KernelResult run_quantised_on_model(const AttentionInput& input, const SparsePlan& plan,
                                    QuantiseRule rule, std::uint64_t seed);

}  // namespace s2o::testing
