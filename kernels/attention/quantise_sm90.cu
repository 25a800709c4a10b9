#include <string>

#include "kernels/attention/quantise.cuh"
#include "kernels/common/cuda_check.h"
#include "kernels/common/error.h"

namespace s2o {
namespace {

using device::QuantiseArgs;

template <class Element>
__global__ void __launch_bounds__(device::kQuantiseThreads)
    statistics_kernel(const __grid_constant__ QuantiseArgs args) {
  __shared__ float shared[device::kQuantiseThreads / 32 * (device::kQuantisePart + 2)];
  device::quantise_statistics<Element>(args, static_cast<int>(blockIdx.y),
                                       static_cast<int>(blockIdx.x), shared);
}
__global__ void __launch_bounds__(device::kQuantiseThreads)
    scales_kernel(const __grid_constant__ QuantiseArgs args) {
  __shared__ device::SharedScales shared;
  device::quantise_scales(args, static_cast<int>(blockIdx.x), shared);
}
template <class Element>
__global__ void __launch_bounds__(device::kQuantiseThreads)
    quantise_kernel(const __grid_constant__ QuantiseArgs args, std::int64_t num_items) {
  constexpr int kWarps = device::kQuantiseThreads / 32;
  __shared__ __align__(16) unsigned char shared[kWarps][16 * (device::kQuantisedColumns + 4)];
  const std::int64_t item = static_cast<std::int64_t>(blockIdx.x) * kWarps + device::warp_index();
  if (item < num_items) device::quantise_warp<Element>(args, item, shared[device::warp_index()]);
}

template <class Element>
void launch(const QuantiseArgs& args, CudaStream stream) {
  const auto heads = static_cast<unsigned>(args.num_kv_heads);
  statistics_kernel<Element>
      <<<dim3(kQuantiseParts, heads), device::kQuantiseThreads, 0, stream>>>(args);
  cuda_check(cudaGetLastError(), "quantise: statistics");
  scales_kernel<<<heads, device::kQuantiseThreads, 0, stream>>>(args);
  cuda_check(cudaGetLastError(), "quantise: scales");
  const std::int64_t items =
      device::quantise_items(args.seqlen, args.num_q_heads, args.num_kv_heads);
  constexpr int kWarps = device::kQuantiseThreads / 32;
  quantise_kernel<Element><<<static_cast<unsigned>((items + kWarps - 1) / kWarps),
                             device::kQuantiseThreads, 0, stream>>>(args, items);
  cuda_check(cudaGetLastError(), "quantise: launch");
}

}  // namespace

void launch_quantise(const DeviceInput& input, QuantiseRule rule, const QuantisedInput& output,
                     CudaStream stream) {
  const Problem& problem = input.problem;
  if (problem.head_dim != device::kQuantisedColumns) {
    throw UnsupportedError("quantise: head_dim is " + std::to_string(problem.head_dim) +
                           ", supported is 128");
  }
  const QuantiseArgs args = device::quantise_args(input, rule, output);
  if (input.dtype == KernelDType::kBf16) {
    launch<device::Bf16>(args, stream);
  } else {
    launch<device::Fp16>(args, stream);
  }
}

}  // namespace s2o
