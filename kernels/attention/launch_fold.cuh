// Kernel entries and launchers of folded columns for one element type.
#pragma once

#include <string>

#include "kernels/attention/fold_sm80.cuh"
#include "kernels/common/cuda_check.h"

namespace s2o::device {

inline constexpr int kSumWarps = 8;  // warps of a block of block_sums_kernel, one sum each

// NOTE: without the 1, ptxas spills two registers on sm_80 for an occupancy that gains nothing.
template <class Element, int kHeadDim>
__global__ void __launch_bounds__(32 * kSumWarps, 1)
    block_sums_kernel(const __grid_constant__ AttentionKernelArgs args,
                      const __grid_constant__ BlockSumsView sums, int num_sets) {
  block_sums_warp<Element, kHeadDim>(
      args, sums, num_sets, static_cast<std::int64_t>(block_index()) * kSumWarps + warp_index());
}

template <class Traits>
__global__ void __launch_bounds__(Traits::kThreads, Traits::kMinBlocks)
    fold_kernel(const __grid_constant__ AttentionKernelArgs args,
                const __grid_constant__ BlockSumsView sums) {
  FoldSm80<Traits>(args, sums).run();
}

template <class Traits>
void launch_fold_instance(const AttentionKernelArgs& args, const BlockSumsView& sums, int num_sets,
                          CudaStream stream) {
  const std::int64_t num_sums = sums.num_blocks * num_sets;
  if (num_sums > 0) {
    const auto num_blocks = static_cast<unsigned>((num_sums + kSumWarps - 1) / kSumWarps);
    block_sums_kernel<typename Traits::Element, Traits::kHeadDim>
        <<<num_blocks, 32 * kSumWarps, 0, stream>>>(args, sums, num_sets);
    cuda_check(cudaGetLastError(), "fold: launch of the block sums");
  }
  constexpr int kSharedBytes = sizeof(SharedFold<Traits>);
  const auto kernel = fold_kernel<Traits>;
  cuda_check(
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kSharedBytes),
      "fold: set shared memory");
  kernel<<<static_cast<unsigned>(args.num_tiles), Traits::kThreads, kSharedBytes, stream>>>(args,
                                                                                            sums);
  cuda_check(cudaGetLastError(), "fold: launch");
}

template <class Element>
void launch_fold(const AttentionKernelArgs& args, const BlockSumsView& sums, int num_sets,
                 int head_dim, int tile_m, CudaStream stream) {
  if (args.num_tiles == 0) return;
  if (head_dim == 64 && tile_m == 64) {
    launch_fold_instance<TraitsFold<Element, 64, 64>>(args, sums, num_sets, stream);
  } else if (head_dim == 64 && tile_m == 128) {
    launch_fold_instance<TraitsFold<Element, 64, 128>>(args, sums, num_sets, stream);
  } else if (head_dim == 128 && tile_m == 64) {
    launch_fold_instance<TraitsFold<Element, 128, 64>>(args, sums, num_sets, stream);
  } else if (head_dim == 128 && tile_m == 128) {
    launch_fold_instance<TraitsFold<Element, 128, 128>>(args, sums, num_sets, stream);
  } else {
    throw UnsupportedError("folded columns: no instance for head_dim " + std::to_string(head_dim) +
                           ", block_m " + std::to_string(tile_m));
  }
}

}  // namespace s2o::device
