// Quantisation and attention over quantised input on the CPU model of a GPU (simt.h). Host-safe.
// All pointers are host pointers. Tests only.
#pragma once

#include <cstdint>

#include "kernels/attention/kernel_args.h"
#include "kernels/attention/quantised_input.h"

namespace s2o::testing {

// As launch_quantise, of bf16 input.
void model_quantise(const DeviceInput& input, QuantiseRule rule, const QuantisedInput& output);
// One pass over it with tiles of 128 queries; `stored` are those of the stored input.
void model_attention_quantised(const AttentionKernelArgs& stored, const Problem& problem,
                               const QuantisedInput& input, std::uint64_t seed);

}  // namespace s2o::testing
