// Kernel entry and launcher of the Hopper kernel over quantised input.
#pragma once

#include <algorithm>

#include "kernels/attention/attention_quantised.h"
#include "kernels/attention/quantised_mainloop_sm90.cuh"
#include "kernels/common/block_registers.h"
#include "kernels/common/cuda_check.h"

namespace s2o::device {

template <class Traits>
__global__ void __launch_bounds__(Traits::kThreads, 1)
    attention_quantised_kernel(const __grid_constant__ QuantisedKernelArgs args,
                               const __grid_constant__ AttentionMaps maps) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  attention_quantised_body<Traits>(args, maps);
#else
  __trap();  // built for another architecture: the host never launches this
#endif
}

template <class Traits>
void launch_quantised_instance(const QuantisedKernelArgs& args, const AttentionMaps& maps,
                               int num_multiprocessors, CudaStream stream) {
  constexpr int kSharedBytes = sizeof(QuantisedShared<Traits>);
  const auto kernel = attention_quantised_kernel<Traits>;
  check_block_registers(kernel, "attention_sm90, fp8", Traits::kThreads,
                        128 * (Traits::kProducerRegisters +
                               Traits::kConsumerWarpgroups * Traits::kConsumerRegisters));
  cuda_check(
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kSharedBytes),
      "attention_sm90, fp8: set shared memory");
  const auto num_blocks = static_cast<unsigned>(std::min(args.num_tiles, num_multiprocessors));
  kernel<<<num_blocks, Traits::kThreads, kSharedBytes, stream>>>(args, maps);
  cuda_check(cudaGetLastError(), "attention_sm90, fp8: launch");
}

template <class Out, bool kWide, int kTileM>
void launch_quantised_tile(const QuantisedKernelArgs& args, const AttentionMaps& maps,
                           int num_multiprocessors, CudaStream stream) {
  with_decision_sm90(args, [&]<StepDecision kDecision>() {
    // An early stop has wide values (has_wide_values).
    if constexpr (kWide || kDecision != StepDecision::kEarlyStop) {
      launch_quantised_instance<QuantisedTraits<Out, kWide, kTileM, kDecision>>(
          args, maps, num_multiprocessors, stream);
    }
  });
}

template <bool kWide>
void launch_quantised(const QuantisedKernelArgs& args, const AttentionMaps& maps,
                      KernelDType output, TileShape tile, int num_multiprocessors,
                      CudaStream stream) {
  if (args.num_tiles == 0) return;
  const bool bf16 = output == KernelDType::kBf16;
  const bool tall = tile.tile_m == 128;
  (bf16   ? tall ? launch_quantised_tile<Bf16, kWide, 128> : launch_quantised_tile<Bf16, kWide, 64>
     : tall ? launch_quantised_tile<Fp16, kWide, 128>
          : launch_quantised_tile<Fp16, kWide, 64>)(args, maps, num_multiprocessors, stream);
}

}  // namespace s2o::device
