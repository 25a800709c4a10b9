// The residual stream: embedding rows, and sums into it with the norm that follows.
#include <string>

#include "kernels/common/cuda_check.h"
#include "kernels/model/elements.cuh"
#include "kernels/model/model_kernels.h"

namespace s2o {
namespace device {

using Bf16 = __nv_bfloat16;
constexpr int kNormThreads = 256;
constexpr int kEmbedThreads = 128;

// One block a row.
__global__ void __launch_bounds__(kEmbedThreads)
    embed_kernel(const __grid_constant__ EmbedArgs args) {
  const std::int64_t row = blockIdx.x;
  const std::uint16_t* const source =
      args.table + static_cast<std::int64_t>(args.tokens[row]) * args.hidden_size;
  float* const target = args.residual + row * args.hidden_size;
  for (int i = static_cast<int>(threadIdx.x) * 4; i < args.hidden_size; i += kEmbedThreads * 4) {
    *reinterpret_cast<float4*>(target + i) = unpack4<Bf16>(load4_16(source + i));
  }
}

// One block a row, which stays in registers between the sum and the norm.
template <int kVectors>
__global__ void __launch_bounds__(kNormThreads)
    add_rms_norm_kernel(const __grid_constant__ NormArgs args) {
  const std::int64_t row = blockIdx.x;
  const std::int64_t source = args.row_indices == nullptr ? row : args.row_indices[row];
  float* const residual = args.residual + source * args.hidden_size;
  float4 values[kVectors];
  float squares = 0.0f;
#pragma unroll
  for (int v = 0; v < kVectors; ++v) {
    const int i = (v * kNormThreads + static_cast<int>(threadIdx.x)) * 4;
    values[v] = i < args.hidden_size ? load4(residual + i) : float4{0.0f, 0.0f, 0.0f, 0.0f};
  }
  if (args.delta != nullptr) {
    const std::uint16_t* const delta = args.delta + row * args.hidden_size;
#pragma unroll
    for (int v = 0; v < kVectors; ++v) {
      const int i = (v * kNormThreads + static_cast<int>(threadIdx.x)) * 4;
      if (i >= args.hidden_size) continue;
      values[v] = values[v] + unpack4<Bf16>(load4_16(delta + i));
      if (args.delta_bias != nullptr) values[v] = values[v] + load4(args.delta_bias + i);
      *reinterpret_cast<float4*>(residual + i) = values[v];
    }
  }
#pragma unroll
  for (int v = 0; v < kVectors; ++v) squares += sum_of_squares(values[v]);
  const float mean = sum_block<kNormThreads>(squares) / static_cast<float>(args.hidden_size);
  if (args.first_bad != nullptr && threadIdx.x == 0 && !isfinite(mean)) {
    atomicMin(args.first_bad, args.bad_key + static_cast<unsigned long long>(row));
  }
  if (args.weight == nullptr) return;
  const float scale = 1.0f / sqrtf(mean + args.eps);
  std::uint16_t* const out = args.out + row * args.hidden_size;
#pragma unroll
  for (int v = 0; v < kVectors; ++v) {
    const int i = (v * kNormThreads + static_cast<int>(threadIdx.x)) * 4;
    if (i >= args.hidden_size) continue;
    *reinterpret_cast<uint2*>(out + i) = pack4<Bf16>(values[v] * scale * load4(args.weight + i));
  }
}

template <int kVectors>
void launch_norm(const NormArgs& args, CudaStream stream) {
  if constexpr (kVectors * kNormThreads * 4 > kMaxNormSize) {
    throw UnsupportedError("RMSNorm: rows of " + std::to_string(args.hidden_size) +
                           " elements, at most " + std::to_string(kMaxNormSize) + " are supported");
  } else if (args.hidden_size > kVectors * kNormThreads * 4) {
    launch_norm<2 * kVectors>(args, stream);
  } else {
    add_rms_norm_kernel<kVectors>
        <<<static_cast<unsigned>(args.rows), kNormThreads, 0, stream>>>(args);
    cuda_check(cudaGetLastError(), "launch of RMSNorm");
  }
}

}  // namespace device

void launch_embed(const EmbedArgs& args, CudaStream stream) {
  device::embed_kernel<<<static_cast<unsigned>(args.rows), device::kEmbedThreads, 0, stream>>>(
      args);
  cuda_check(cudaGetLastError(), "launch of the embedding");
}

void launch_add_rms_norm(const NormArgs& args, CudaStream stream) {
  device::launch_norm<1>(args, stream);
}

}  // namespace s2o
