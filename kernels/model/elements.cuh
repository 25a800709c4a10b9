// Groups of four 16-bit elements in registers, and sums over a block. For kernels/model only.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

namespace s2o::device {

// Two and four floats of 16-bit values; the storage type decides how.
template <class Element>
__device__ inline std::uint32_t pack2(float a, float b);
template <>
__device__ inline std::uint32_t pack2<__nv_bfloat16>(float a, float b) {
  const __nv_bfloat162 pair = __floats2bfloat162_rn(a, b);
  return *reinterpret_cast<const std::uint32_t*>(&pair);
}
template <>
__device__ inline std::uint32_t pack2<__half>(float a, float b) {
  const __half2 pair = __floats2half2_rn(a, b);
  return *reinterpret_cast<const std::uint32_t*>(&pair);
}
template <class Element>
__device__ inline float2 unpack2(std::uint32_t bits);
template <>
__device__ inline float2 unpack2<__nv_bfloat16>(std::uint32_t bits) {
  return {__uint_as_float(bits << 16), __uint_as_float(bits & 0xffff0000u)};
}
template <>
__device__ inline float2 unpack2<__half>(std::uint32_t bits) {
  return __half22float2(*reinterpret_cast<const __half2*>(&bits));
}

template <class Element>
__device__ inline uint2 pack4(float4 x) {
  return {pack2<Element>(x.x, x.y), pack2<Element>(x.z, x.w)};
}
template <class Element>
__device__ inline float4 unpack4(uint2 bits) {
  const float2 low = unpack2<Element>(bits.x);
  const float2 high = unpack2<Element>(bits.y);
  return {low.x, low.y, high.x, high.y};
}

__device__ inline float4 operator+(float4 a, float4 b) {
  return {a.x + b.x, a.y + b.y, a.z + b.z, a.w + b.w};
}
__device__ inline float4 operator-(float4 a, float4 b) {
  return {a.x - b.x, a.y - b.y, a.z - b.z, a.w - b.w};
}
__device__ inline float4 operator*(float4 a, float4 b) {
  return {a.x * b.x, a.y * b.y, a.z * b.z, a.w * b.w};
}
__device__ inline float4 operator*(float4 a, float b) {
  return {a.x * b, a.y * b, a.z * b, a.w * b};
}
__device__ inline float sum_of_squares(float4 a) {
  return (a.x * a.x + a.y * a.y) + (a.z * a.z + a.w * a.w);
}

__device__ inline float4 load4(const float* source) {
  return *reinterpret_cast<const float4*>(source);
}
__device__ inline uint2 load4_16(const std::uint16_t* source) {
  return *reinterpret_cast<const uint2*>(source);
}

// Sum over the lanes of a group of kLanes (a power of two), in every lane, in a fixed order.
template <int kLanes>
__device__ inline float sum_lanes(float x) {
#pragma unroll
  for (int mask = kLanes / 2; mask > 0; mask /= 2) x += __shfl_xor_sync(0xffffffffu, x, mask);
  return x;
}

// Sum over a block of kThreads, in every thread, in a fixed order. Called once per kernel.
template <int kThreads>
__device__ inline float sum_block(float x) {
  constexpr int kWarps = kThreads / 32;
  __shared__ float s_warps[kWarps];
  x = sum_lanes<32>(x);
  const int lane = static_cast<int>(threadIdx.x) % 32;
  if (lane == 0) s_warps[threadIdx.x / 32] = x;
  __syncthreads();
  return sum_lanes<32>(lane < kWarps ? s_warps[lane] : 0.0f);
}

}  // namespace s2o::device
