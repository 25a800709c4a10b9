#include "kernels/common/tensor_map_cuda.h"

#include <cuda.h>  // types only: the function comes from the runtime, so libcuda is not linked
#include <cuda_runtime.h>

#include <cstring>
#include <string>

#include "kernels/common/cuda_check.h"

namespace s2o {
namespace {

// First driver version that has the function.
constexpr unsigned kEncodeSince = 12000;

decltype(&cuTensorMapEncodeTiled) encode_function() {
  void* function = nullptr;
  cudaDriverEntryPointQueryResult result = cudaDriverEntryPointSymbolNotFound;
  cuda_check(cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function, kEncodeSince,
                                              cudaEnableDefault, &result),
             "find cuTensorMapEncodeTiled in the driver");
  if (result != cudaDriverEntryPointSuccess || function == nullptr) {
    throw CudaError("the driver has no cuTensorMapEncodeTiled");
  }
  return reinterpret_cast<decltype(&cuTensorMapEncodeTiled)>(function);
}

}  // namespace

device::TensorMap make_tensor_map(const device::MappedTensor& tensor, bool is_bf16, int box_rows) {
  static const auto encode = encode_function();
  const cuuint64_t sizes[3] = {static_cast<cuuint64_t>(tensor.num_columns),
                               static_cast<cuuint64_t>(tensor.num_rows),
                               static_cast<cuuint64_t>(tensor.num_heads)};
  const cuuint64_t strides_bytes[2] = {static_cast<cuuint64_t>(tensor.num_columns) * 2,
                                       static_cast<cuuint64_t>(tensor.head_stride) * 2};
  const cuuint32_t box[3] = {64, static_cast<cuuint32_t>(box_rows), 1};
  const cuuint32_t element_strides[3] = {1, 1, 1};
  alignas(64) CUtensorMap encoded;
  const CUresult result =
      encode(&encoded, is_bf16 ? CU_TENSOR_MAP_DATA_TYPE_BFLOAT16 : CU_TENSOR_MAP_DATA_TYPE_FLOAT16,
             3, const_cast<void*>(tensor.base), sizes, strides_bytes, box, element_strides,
             CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
             CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  if (result != CUDA_SUCCESS) {
    throw CudaError("cuTensorMapEncodeTiled: error " + std::to_string(result) + " for " +
                    std::to_string(tensor.num_heads) + " x " + std::to_string(tensor.num_rows) +
                    " x " + std::to_string(tensor.num_columns) + ", boxes of " +
                    std::to_string(box_rows) + " rows");
  }
  device::TensorMap map;
  static_assert(sizeof(map.bytes) == sizeof(encoded));
  std::memcpy(map.bytes, &encoded, sizeof(encoded));
  return map;
}

}  // namespace s2o
