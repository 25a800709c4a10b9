// What device code is written against. Under nvcc these are the CUDA built-ins; in the tests the
// same source runs on the CPU model of kernels/testing/simt.h, one fiber per device thread.
#pragma once

#include <cstdint>

#if defined(__CUDACC__)
#define S2O_DEVICE __device__ __forceinline__
#define S2O_HOST_DEVICE __host__ __device__ __forceinline__
#else
#define S2O_DEVICE inline
#define S2O_HOST_DEVICE inline
#endif

namespace s2o::device {

// Storage types of Q, K and V: a tag and 16 bits.
struct Bf16 {
  static constexpr bool kIsBf16 = true;
  std::uint16_t bits;
};
struct Fp16 {
  static constexpr bool kIsBf16 = false;
  std::uint16_t bits;
};

inline constexpr float kLog2E = 1.4426950408889634f;
inline constexpr float kLn2 = 0.6931471805599453f;
inline constexpr float kNegativeInfinity = -__builtin_huge_valf();

S2O_HOST_DEVICE constexpr int ceil_div(int a, int b) { return (a + b - 1) / b; }
S2O_HOST_DEVICE constexpr int min_of(int a, int b) { return a < b ? a : b; }

}  // namespace s2o::device

#if defined(__CUDACC__)
#include "kernels/device/platform_cuda.cuh"
#else
#include "kernels/device/platform_model.cuh"
#endif

namespace s2o::device {

// Indices are never negative; saying so saves the sign handling of / and %.
S2O_HOST_DEVICE constexpr int lane_of(int thread) {
  return static_cast<int>(static_cast<unsigned>(thread) % 32u);
}
S2O_HOST_DEVICE constexpr int warp_of(int thread) {
  return static_cast<int>(static_cast<unsigned>(thread) / 32u);
}
S2O_DEVICE int lane_index() { return lane_of(thread_index()); }
S2O_DEVICE int warp_index() { return warp_of(thread_index()); }

// Unsigned integers in the order of the floats they encode; 0 is below every float.
S2O_DEVICE std::uint32_t ordered_bits(float value) {
  const std::uint32_t bits = float_bits(value);
  return (bits >> 31) != 0 ? ~bits : bits | 0x80000000u;
}
S2O_DEVICE float ordered_float(std::uint32_t ordered) {
  return bits_float((ordered >> 31) != 0 ? ordered & 0x7fffffffu : ~ordered);
}

// Sum and maximum over the four lanes that hold one row of an accumulator fragment.
S2O_DEVICE float quad_sum(float value) {
  value += shuffle_xor(value, 1);
  return value + shuffle_xor(value, 2);
}
S2O_DEVICE float quad_max(float value) {
  value = max_of(value, shuffle_xor(value, 1));
  return max_of(value, shuffle_xor(value, 2));
}

}  // namespace s2o::device
