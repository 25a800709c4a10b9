// The device that CUDA calls of a thread go to. CUDA builds only.
#pragma once

#include <cuda_runtime.h>

#include "kernels/common/cuda_check.h"

namespace s2o {

// Makes a device current for a while; the one before comes back afterwards.
class CurrentDevice {
 public:
  explicit CurrentDevice(int device) {
    cuda_check(cudaGetDevice(&before_), "current device");
    changed_ = before_ != device;
    if (changed_) cuda_check(cudaSetDevice(device), "select device");
  }
  ~CurrentDevice() {
    if (changed_) (void)cudaSetDevice(before_);
  }
  CurrentDevice(const CurrentDevice&) = delete;
  CurrentDevice& operator=(const CurrentDevice&) = delete;

 private:
  int before_ = 0;
  bool changed_ = false;
};

}  // namespace s2o
