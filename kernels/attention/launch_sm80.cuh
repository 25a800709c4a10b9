// Kernel entry, launcher and instances of the portable kernel for one element type.
#pragma once

#include "kernels/attention/attention_kernels.h"
#include "kernels/attention/mainloop_sm80.cuh"
#include "kernels/common/block_shared.h"
#include "kernels/common/cuda_check.h"

namespace s2o::device {

template <class Traits>
__global__ void __launch_bounds__(Traits::kThreads, Traits::kMinBlocksPerMultiprocessor)
    attention_sm80_kernel(const __grid_constant__ AttentionKernelArgs args) {
  MainloopSm80<Traits>(args).run();
}

template <class Traits>
void launch_instance_sm80(const AttentionKernelArgs& args, CudaStream stream) {
  constexpr int kSharedBytes = sizeof(SharedSm80<Traits>);
  check_block_shared("attention_sm80: tiles of " + std::to_string(Traits::kTileM) +
                         " queries and " + std::to_string(Traits::kTileN) + " keys at head_dim " +
                         std::to_string(Traits::kHeadDim),
                     kSharedBytes);
  const auto kernel = attention_sm80_kernel<Traits>;
  cuda_check(
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kSharedBytes),
      "attention_sm80: set shared memory");
  kernel<<<static_cast<unsigned>(args.num_tiles), Traits::kThreads, kSharedBytes, stream>>>(args);
  cuda_check(cudaGetLastError(), "attention_sm80: launch");
}

template <class Element, int kHeadDim>
void launch_tile_sm80(const AttentionKernelArgs& args, TileShape tile, CudaStream stream) {
  const auto is = [&tile](int m, int n, int terms) {
    return tile == TileShape{.tile_m = m, .tile_n = n, .pv_terms = terms};
  };
  if (is(128, 64, 1)) {
    return launch_instance_sm80<TraitsSm80<Element, kHeadDim, 128, 64, 1>>(args, stream);
  }
  if (is(64, 64, 1)) {
    return launch_instance_sm80<TraitsSm80<Element, kHeadDim, 64, 64, 1>>(args, stream);
  }
  if (is(64, 64, 3)) {
    return launch_instance_sm80<TraitsSm80<Element, kHeadDim, 64, 64, 3>>(args, stream);
  }
  if constexpr (kHeadDim == 64 || kHeadDim == 128) {
    if (is(128, 128, 1)) {
      return launch_instance_sm80<TraitsSm80<Element, kHeadDim, 128, 128, 1>>(args, stream);
    }
    if (is(64, 128, 1)) {
      return launch_instance_sm80<TraitsSm80<Element, kHeadDim, 64, 128, 1>>(args, stream);
    }
  }
  throw UnsupportedError("attention_sm80: no instance for tile " + std::to_string(tile.tile_m) +
                         "x" + std::to_string(tile.tile_n) + ", " + std::to_string(tile.pv_terms) +
                         " terms at head_dim " + std::to_string(kHeadDim));
}

template <class Element>
void launch_attention_sm80(const AttentionKernelArgs& args, int head_dim, TileShape tile,
                           CudaStream stream) {
  if (args.num_tiles == 0) return;
  switch (head_dim) {
    case 64:
      return launch_tile_sm80<Element, 64>(args, tile, stream);
    case 96:
      return launch_tile_sm80<Element, 96>(args, tile, stream);
    case 128:
      return launch_tile_sm80<Element, 128>(args, tile, stream);
    case 256:
      return launch_tile_sm80<Element, 256>(args, tile, stream);
    default:
      throw UnsupportedError("attention_sm80: head_dim is " + std::to_string(head_dim) +
                             ", supported are 64, 96, 128 and 256");
  }
}

}  // namespace s2o::device
