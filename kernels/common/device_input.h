// One layer's Q, K and V in device memory. Host-safe.
#pragma once

#include "kernels/common/dtype.h"
#include "kernels/common/problem.h"

namespace s2o {

struct DeviceInput {
  Problem problem;
  KernelDType dtype = KernelDType::kBf16;
  const void* q = nullptr;  // [num_q_heads, seqlen, head_dim], 16-bit
  const void* k = nullptr;  // [num_kv_heads, seqlen, head_dim], 16-bit
  const void* v = nullptr;  // [num_kv_heads, seqlen, head_dim], 16-bit

  Elements elements() const { return {.dtype = dtype, .head_dim = problem.head_dim}; }
};

}  // namespace s2o
