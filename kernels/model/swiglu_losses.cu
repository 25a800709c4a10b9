// Activation of the MLP, and the loss of rows of logits.
#include "kernels/common/cuda_check.h"
#include "kernels/model/elements.cuh"
#include "kernels/model/model_kernels.h"

namespace s2o {
namespace device {

using Bf16 = __nv_bfloat16;
constexpr int kSwigluThreads = 256;
constexpr int kSwigluSteps = 2;  // groups of 8 elements of a thread, loaded before the first use
constexpr int kLossThreads = 512;

// exp overflows to infinity below -88, and x / infinity is the right zero.
__device__ inline float silu(float x) { return __fdividef(x, 1.0f + __expf(-x)); }
__device__ inline float4 swiglu(float4 gate, float4 up) {
  return float4{silu(gate.x), silu(gate.y), silu(gate.z), silu(gate.w)} * up;
}

// Block (columns, row): a row is walked by neighbouring blocks, 16 bytes a thread and step.
__global__ void __launch_bounds__(kSwigluThreads)
    swiglu_kernel(const __grid_constant__ SwigluArgs args) {
  const std::int64_t row = blockIdx.y + static_cast<std::int64_t>(blockIdx.z) * gridDim.y;
  if (row >= args.rows) return;
  const std::uint16_t* const gate = args.gate_up + row * 2 * args.intermediate_size;
  const std::uint16_t* const up = gate + args.intermediate_size;
  const int first = static_cast<int>(blockIdx.x * kSwigluSteps * kSwigluThreads + threadIdx.x) * 8;
  uint4 gates[kSwigluSteps], ups[kSwigluSteps];
#pragma unroll
  for (int s = 0; s < kSwigluSteps; ++s) {
    const int i = first + s * kSwigluThreads * 8;
    gates[s] = ups[s] = {0u, 0u, 0u, 0u};
    if (i >= args.intermediate_size) continue;
    gates[s] = *reinterpret_cast<const uint4*>(gate + i);
    ups[s] = *reinterpret_cast<const uint4*>(up + i);
  }
#pragma unroll
  for (int s = 0; s < kSwigluSteps; ++s) {
    const int i = first + s * kSwigluThreads * 8;
    if (i >= args.intermediate_size) continue;
    float4 g0 = unpack4<Bf16>({gates[s].x, gates[s].y});
    float4 g1 = unpack4<Bf16>({gates[s].z, gates[s].w});
    float4 u0 = unpack4<Bf16>({ups[s].x, ups[s].y});
    float4 u1 = unpack4<Bf16>({ups[s].z, ups[s].w});
    if (args.bias != nullptr) {
      g0 = g0 + load4(args.bias + i);
      g1 = g1 + load4(args.bias + i + 4);
      u0 = u0 + load4(args.bias + args.intermediate_size + i);
      u1 = u1 + load4(args.bias + args.intermediate_size + i + 4);
    }
    const uint2 low = pack4<Bf16>(swiglu(g0, u0));
    const uint2 high = pack4<Bf16>(swiglu(g1, u1));
    *reinterpret_cast<uint4*>(args.out + row * args.intermediate_size + i) = {low.x, low.y, high.x,
                                                                              high.y};
  }
}

// Maximum over the block, in every thread.
__device__ inline float max_block(float x) {
  __shared__ float s_warps[kLossThreads / 32];
  for (int mask = 16; mask > 0; mask /= 2) x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, mask));
  if (threadIdx.x % 32 == 0) s_warps[threadIdx.x / 32] = x;
  __syncthreads();
  for (int warp = 0; warp < kLossThreads / 32; ++warp) x = fmaxf(x, s_warps[warp]);
  return x;
}

// One block a row, which is read twice.
__global__ void __launch_bounds__(kLossThreads)
    losses_kernel(const __grid_constant__ LossArgs args) {
  const std::int64_t row = blockIdx.x;
  const float* const logits = args.logits + row * args.stride;
  float largest = -INFINITY;
  for (int i = static_cast<int>(threadIdx.x); i < args.vocab_size; i += kLossThreads) {
    largest = fmaxf(largest, logits[i]);
  }
  largest = max_block(largest);
  float sum = 0.0f;
  for (int i = static_cast<int>(threadIdx.x); i < args.vocab_size; i += kLossThreads) {
    sum += expf(logits[i] - largest);
  }
  sum = sum_block<kLossThreads>(sum);
  if (threadIdx.x != 0) return;
  args.log_sums[row] = log(static_cast<double>(sum)) + static_cast<double>(largest);
  const int column = args.targets[row] - args.first_token;
  const bool is_here = column >= 0 && column < args.vocab_size;
  args.target_logits[row] = is_here ? logits[column] : -INFINITY;
}

}  // namespace device

void launch_swiglu(const SwigluArgs& args, CudaStream stream) {
  constexpr int kColumns = device::kSwigluThreads * device::kSwigluSteps * 8;
  constexpr std::int64_t kMaxGridY = 65535;
  const std::int64_t rows_y = args.rows < kMaxGridY ? args.rows : kMaxGridY;
  const dim3 grid(static_cast<unsigned>((args.intermediate_size + kColumns - 1) / kColumns),
                  static_cast<unsigned>(rows_y),
                  static_cast<unsigned>((args.rows + rows_y - 1) / rows_y));
  device::swiglu_kernel<<<grid, device::kSwigluThreads, 0, stream>>>(args);
  cuda_check(cudaGetLastError(), "launch of SwiGLU");
}

void launch_losses(const LossArgs& args, CudaStream stream) {
  device::losses_kernel<<<static_cast<unsigned>(args.rows), device::kLossThreads, 0, stream>>>(
      args);
  cuda_check(cudaGetLastError(), "launch of the losses");
}

}  // namespace s2o
