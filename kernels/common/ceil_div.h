// Number of parts of `size` that hold `count` things. Host-safe; device code divides in 32 bits
// (kernels/device/platform.cuh).
#pragma once

#include <cstdint>

namespace s2o {

template <class Int = std::int64_t>
constexpr Int ceil_div(std::int64_t count, std::int64_t size) {
  return static_cast<Int>((count + size - 1) / size);
}

}  // namespace s2o
