// Encoding of tensor maps by the driver. CUDA builds only.
#pragma once

#include <cstdint>

#include "kernels/common/tensor_map.h"

namespace s2o {

// Map of a [num_heads, seqlen, head_dim] tensor of 16-bit elements at device address `base` (a
// multiple of 16), boxes of 64 x box_rows x 1, 128-byte swizzle. CudaError if the driver refuses.
device::TensorMap make_tensor_map(const void* base, bool is_bf16, int num_heads,
                                  std::int64_t seqlen, int head_dim, int box_rows);

}  // namespace s2o
