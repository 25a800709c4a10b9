// Element types of Q, K and V that kernels take.
#pragma once

#include <cstdint>

namespace s2o {

enum class KernelDType : std::uint8_t { kBf16, kFp16 };

// Type of the elements of Q, K and V, and elements of a row.
struct Elements {
  KernelDType dtype = KernelDType::kBf16;
  int head_dim = 0;  // 64 or 128
};

}  // namespace s2o
