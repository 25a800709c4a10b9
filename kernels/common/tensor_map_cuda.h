// Encoding of tensor maps by the driver. CUDA builds only.
#pragma once

#include "kernels/common/tensor_map.h"

namespace s2o {

// Map of a tensor at a device address that is a multiple of 16, boxes of 64 x box_rows x 1,
// 128-byte swizzle. CudaError if the driver refuses.
device::TensorMap make_tensor_map(const device::MappedTensor& tensor, bool is_bf16, int box_rows);

}  // namespace s2o
