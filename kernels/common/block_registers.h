// Warpgroups of a kernel for sm_90a exchange registers of what their block was launched with; fewer
// would hang. Included only where the CUDA runtime is.
#pragma once

#include <string>

#include "kernels/common/cuda_check.h"

namespace s2o {

// UnsupportedError when `kernel` was built with fewer than `needed` registers for a block of
// `threads`. `name` begins the message.
template <class Kernel>
void check_block_registers(Kernel* kernel, const char* name, int threads, int needed) {
  cudaFuncAttributes attributes{};
  cuda_check(cudaFuncGetAttributes(&attributes, kernel), name);
  const int launched = attributes.numRegs * threads;
  if (launched >= needed) return;
  throw UnsupportedError(std::string(name) + ": built with " + std::to_string(launched) +
                         " registers a block, the warpgroups need " + std::to_string(needed));
}

}  // namespace s2o
