// The device code of the attention kernels on the CPU model of a GPU (simt.h). Host-safe: tests of
// higher layers see no device header. All pointers in `args` are host pointers. Tests only.
#pragma once

#include <cstdint>

#include "kernels/attention/kernel_args.h"
#include "kernels/attention/kernel_choice.h"
#include "kernels/common/dtype.h"

namespace s2o::testing {

// One pass. `tile` comes from choose_tile; `seed` decides the schedule of threads and copies. Built
// for bf16, and for fp16 with head_dim 64: UnsupportedError otherwise.
void model_attention(AttentionKernel kernel, const AttentionKernelArgs& args,
                     const Problem& problem, KernelDType dtype, TileShape tile, std::uint64_t seed);

// The folded columns of a pass that has run. Built for the same types.
void model_fold(const AttentionKernelArgs& args, const Problem& problem, KernelDType dtype,
                int tile_m, std::uint64_t seed);

}  // namespace s2o::testing
