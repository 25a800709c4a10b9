// From run-time element types and head dimensions to kernel instances; launches of whole grids.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

#include "kernels/attention/launch_plan.h"
#include "kernels/common/cuda_check.h"
#include "kernels/device/platform.cuh"

namespace s2o::device {

template <class Body>
void dispatch_element(KernelDType dtype, int head_dim, const Body& body) {
  if (head_dim != 64 && head_dim != 128) {
    throw UnsupportedError("planning: head_dim is " + std::to_string(head_dim) +
                           ", supported are 64 and 128");
  }
  if (dtype == KernelDType::kBf16) {
    head_dim == 64 ? body.template operator()<Bf16, 64>() : body.template operator()<Bf16, 128>();
  } else {
    head_dim == 64 ? body.template operator()<Fp16, 64>() : body.template operator()<Fp16, 128>();
  }
}

// 8, 16 or 32 reduced columns a block of keys (ops.h).
template <class Body>
void dispatch_columns(int columns_per_block, const Body& body) {
  if (columns_per_block == 8) {
    body.template operator()<8>();
  } else if (columns_per_block == 16) {
    body.template operator()<16>();
  } else {
    body.template operator()<32>();
  }
}

template <class Kernel, class... Args>
void launch_blocks(Kernel kernel, std::int64_t num_blocks, int num_threads,
                   std::size_t shared_bytes, cudaStream_t stream, const char* what,
                   const Args&... args) {
  if (num_blocks == 0) return;
  if (shared_bytes > 48 * 1024) {
    cuda_check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                    static_cast<int>(shared_bytes)),
               what);
  }
  kernel<<<static_cast<unsigned>(num_blocks), static_cast<unsigned>(num_threads), shared_bytes,
           stream>>>(args...);
  cuda_check(cudaGetLastError(), what);
}

}  // namespace s2o::device
