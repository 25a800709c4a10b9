// Q, K and V of the host copied to the device. CUDA builds only.
#pragma once

#include <cstdint>

#include "kernels/common/device_buffer.h"
#include "kernels/common/device_input.h"

namespace s2o {

class DeviceInputCopy {
 public:
  // Copies q [num_q_heads, seqlen, head_dim], k, v [num_kv_heads, seqlen, head_dim] (16-bit values
  // of `dtype`) and waits. UnsupportedError with bytes needed and free.
  DeviceInputCopy(const Problem& problem, KernelDType dtype, const std::uint16_t* q,
                  const std::uint16_t* k, const std::uint16_t* v);

  // Valid as long as this object.
  const DeviceInput& input() const { return input_; }

 private:
  DeviceBuffer<std::uint16_t> q_, k_, v_;
  DeviceInput input_;
};

}  // namespace s2o
