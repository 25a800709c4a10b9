// Cold caches for measurements. CUDA builds only.
#pragma once

#include "kernels/common/cuda_stream.h"
#include "kernels/common/device_buffer.h"
#include "kernels/common/device_info.h"

namespace s2o {

// Writes a buffer twice as large as the L2 cache, so that what follows starts cold.
class L2Flush {
 public:
  explicit L2Flush(const DeviceInfo& device) {
    buffer_.resize(static_cast<std::size_t>(2 * device.l2_bytes),
                   "buffer that flushes the L2 cache");
  }
  void enqueue(CudaStream stream) {
    cuda_check(cudaMemsetAsync(buffer_.data(), 0, buffer_.size(), stream), "flush L2");
  }

 private:
  DeviceBuffer<unsigned char> buffer_;
};

}  // namespace s2o
