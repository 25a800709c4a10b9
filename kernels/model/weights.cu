// Weights on their way to the device: conversion to bf16, and seeded random ones.
#include "kernels/common/cuda_check.h"
#include "kernels/model/elements.cuh"
#include "kernels/model/model_kernels.h"

namespace s2o {
namespace device {

constexpr int kThreads = 256;
constexpr std::int64_t kMaxBlocks = 1 << 20;

__device__ inline std::int64_t first_index() {
  return static_cast<std::int64_t>(blockIdx.x) * kThreads + static_cast<int>(threadIdx.x);
}
__device__ inline std::int64_t index_step() {
  return static_cast<std::int64_t>(gridDim.x) * kThreads;
}

__device__ inline float to_float(float x) { return x; }
__device__ inline float to_float(std::uint16_t bits) {
  return __half2float(*reinterpret_cast<const __half*>(&bits));
}

template <class Source>
__global__ void __launch_bounds__(kThreads)
    to_bf16_kernel(const Source* source, std::uint16_t* target, std::int64_t count) {
  for (std::int64_t i = first_index(); i < count; i += index_step()) {
    const __nv_bfloat16 value = __float2bfloat16_rn(to_float(source[i]));
    target[i] = *reinterpret_cast<const std::uint16_t*>(&value);
  }
}

// SplitMix64 finaliser: a bijective mix of 64 bits.
__device__ inline std::uint64_t mix_bits(std::uint64_t x) {
  x += 0x9e3779b97f4a7c15ull;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
  return x ^ (x >> 31);
}

// Two normal numbers (Box-Muller) of one 64-bit counter.
__global__ void __launch_bounds__(kThreads)
    random_normal_kernel(const __grid_constant__ RandomArgs args) {
  const std::uint64_t key = mix_bits(mix_bits(args.seed) ^ mix_bits(~args.matrix));
  for (std::int64_t i = first_index(); i < args.count / 2; i += index_step()) {
    const std::int64_t row = args.width == 0 ? 0 : 2 * i / args.width;
    const std::int64_t pair = args.first / 2 + i + row * (args.stride - args.width) / 2;
    const std::uint64_t bits = mix_bits(key ^ mix_bits(static_cast<std::uint64_t>(pair)));
    const float uniform = (static_cast<float>(bits >> 40) + 0.5f) * 0x1.0p-24f;
    const float turn = static_cast<float>(bits & 0xffffffu) * 0x1.0p-23f;  // units of pi
    const float radius = args.deviation * sqrtf(-2.0f * __logf(uniform));
    float sine = 0.0f, cosine = 0.0f;
    sincospif(turn, &sine, &cosine);
    reinterpret_cast<std::uint32_t*>(args.out)[i] =
        pack2<__nv_bfloat16>(radius * cosine, radius * sine);
  }
}

unsigned blocks_for(std::int64_t count) {
  const std::int64_t blocks = (count + kThreads - 1) / kThreads;
  return static_cast<unsigned>(blocks < kMaxBlocks ? blocks : kMaxBlocks);
}

template <class Source>
void launch_to_bf16(const Source* source, std::uint16_t* target, std::int64_t count,
                    CudaStream stream) {
  if (count == 0) return;
  to_bf16_kernel<<<blocks_for(count), kThreads, 0, stream>>>(source, target, count);
  cuda_check(cudaGetLastError(), "launch of a conversion to bf16");
}

}  // namespace device

void launch_random_normal(const RandomArgs& args, CudaStream stream) {
  if (args.count == 0) return;
  device::random_normal_kernel<<<device::blocks_for(args.count / 2), device::kThreads, 0, stream>>>(
      args);
  cuda_check(cudaGetLastError(), "launch of random weights");
}

void launch_fp32_to_bf16(const float* source, std::uint16_t* target, std::int64_t count,
                         CudaStream stream) {
  device::launch_to_bf16(source, target, count, stream);
}
void launch_fp16_to_bf16(const std::uint16_t* source, std::uint16_t* target, std::int64_t count,
                         CudaStream stream) {
  device::launch_to_bf16(source, target, count, stream);
}

}  // namespace s2o
