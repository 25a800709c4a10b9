// Entry and launcher of the Hopper kernels, and the instances for one element type of 16 bit.
#pragma once

#include <algorithm>
#include <string>

#include "kernels/attention/attention_kernels.h"
#include "kernels/attention/mainloop_sm90.cuh"
#include "kernels/common/block_registers.h"
#include "kernels/common/cuda_check.h"

namespace s2o::device {

template <class Traits>
__global__ void __launch_bounds__(Traits::kThreads, 1)
    attention_sm90_kernel(const __grid_constant__ typename Traits::Args args,
                          const __grid_constant__ AttentionMaps maps) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  attention_sm90_body<Traits>(args, maps);
#else
  __trap();  // built for another architecture: the host never launches this
#endif
}

template <class Traits>
void launch_instance_sm90(const typename Traits::Args& args, const AttentionMaps& maps,
                          int num_multiprocessors, CudaStream stream) {
  constexpr int kSharedBytes = sizeof(SharedSm90<Traits>);
  const auto kernel = attention_sm90_kernel<Traits>;
  const std::string name = Traits::kName;
  check_block_registers(kernel, name.c_str(), Traits::kThreads,
                        128 * (Traits::kProducerRegisters +
                               Traits::kConsumerWarpgroups * Traits::kConsumerRegisters));
  cuda_check(
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kSharedBytes),
      (name + ": set shared memory").c_str());
  const auto num_blocks = static_cast<unsigned>(std::min(args.num_tiles, num_multiprocessors));
  kernel<<<num_blocks, Traits::kThreads, kSharedBytes, stream>>>(args, maps);
  cuda_check(cudaGetLastError(), (name + ": launch").c_str());
}

template <class Element, int kHeadDim, int kTileM, int kTileN>
void launch_decision_sm90(const AttentionKernelArgs& args, const AttentionMaps& maps,
                          int num_multiprocessors, CudaStream stream) {
  with_decision_sm90(args, [&]<StepDecision kDecision>() {
    launch_instance_sm90<TraitsSm90<Element, kHeadDim, kTileM, kTileN, kDecision>>(
        args, maps, num_multiprocessors, stream);
  });
}

template <class Element, int kHeadDim>
void launch_tile_sm90(const AttentionKernelArgs& args, const AttentionMaps& maps, TileShape tile,
                      int num_multiprocessors, CudaStream stream) {
  if (tile.tile_m == 128 && tile.tile_n == 128) {
    launch_decision_sm90<Element, kHeadDim, 128, 128>(args, maps, num_multiprocessors, stream);
  } else if (tile.tile_m == 128) {
    launch_decision_sm90<Element, kHeadDim, 128, 64>(args, maps, num_multiprocessors, stream);
  } else if (tile.tile_n == 128) {
    launch_decision_sm90<Element, kHeadDim, 64, 128>(args, maps, num_multiprocessors, stream);
  } else {
    launch_decision_sm90<Element, kHeadDim, 64, 64>(args, maps, num_multiprocessors, stream);
  }
}

template <class Element>
void launch_attention_sm90(const AttentionKernelArgs& args, const AttentionMaps& maps, int head_dim,
                           TileShape tile, int num_multiprocessors, CudaStream stream) {
  if (args.num_tiles == 0) return;
  if (head_dim == 64) {
    launch_tile_sm90<Element, 64>(args, maps, tile, num_multiprocessors, stream);
  } else if (head_dim == 128) {
    launch_tile_sm90<Element, 128>(args, maps, tile, num_multiprocessors, stream);
  } else {
    throw UnsupportedError("attention_sm90: head_dim is " + std::to_string(head_dim) +
                           ", supported are 64 and 128");
  }
}

}  // namespace s2o::device
