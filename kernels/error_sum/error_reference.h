// A tensor kept on the device as what outputs are compared with. CUDA builds only.
#pragma once

#include <cstdint>
#include <vector>

#include "kernels/common/cuda_stream.h"
#include "kernels/common/device_buffer.h"
#include "kernels/error_sum/error_sum.h"

namespace s2o {

class ErrorReference {
 public:
  // Copies `reference` [num_heads, count], in device memory, in the stream.
  ErrorReference(int num_heads, std::int64_t count, const float* reference, CudaStream stream);

  // `out` [num_heads, count], in device memory, against it, per head (error_sum.h). Waits for the
  // stream.
  std::vector<ErrorSums> error_sums(const float* out, CudaStream stream);

 private:
  int num_heads_;
  std::int64_t count_;
  DeviceBuffer<float> reference_;
  DeviceBuffer<ErrorSums> partial_, sums_;
};

}  // namespace s2o
