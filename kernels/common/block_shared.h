// Devices of one generation differ in the shared memory that a block may ask for: 99 KiB on sm_86
// and sm_89, 163 on sm_80. Included only where the CUDA runtime is.
#pragma once

#include <string>

#include "kernels/common/cuda_check.h"

namespace s2o {

// UnsupportedError when the current device gives a block less than `needed` bytes. `what` begins
// the message: who needs them.
inline void check_block_shared(const std::string& what, int needed) {
  int index = 0;
  int found = 0;
  cuda_check(cudaGetDevice(&index), "current device");
  cuda_check(cudaDeviceGetAttribute(&found, cudaDevAttrMaxSharedMemoryPerBlockOptin, index),
             "shared memory of a block");
  if (found >= needed) return;
  throw UnsupportedError(what + " need " + std::to_string(needed) +
                         " bytes of shared memory a block, this device has " +
                         std::to_string(found));
}

}  // namespace s2o
