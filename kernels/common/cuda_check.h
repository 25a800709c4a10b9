// Turns CUDA status codes into exceptions. Included only where the CUDA runtime is (.cu files and
// host files of a build with S2O_HAS_CUDA).
#pragma once

#include <cuda_runtime.h>

#include <source_location>
#include <string>

#include "kernels/common/error.h"

namespace s2o {

// Throws CudaError naming the place, the call's meaning and the runtime's message. Clears the
// runtime's last error, so that the next call does not report it again.
inline void cuda_check(cudaError_t status, const char* what,
                       std::source_location where = std::source_location::current()) {
  if (status == cudaSuccess) return;
  (void)cudaGetLastError();
  const std::string file = where.file_name();
  throw CudaError(file.substr(file.rfind('/') + 1) + ":" + std::to_string(where.line()) + ": " +
                  what + ": " + cudaGetErrorString(status) + " (" + cudaGetErrorName(status) + ")");
}

}  // namespace s2o
