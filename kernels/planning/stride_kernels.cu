// Kernel entries and launches of XAttention's estimate.
#include "kernels/planning/cuda_planning_kernels.h"
#include "kernels/planning/dispatch.cuh"
#include "kernels/planning/planning_sm90.h"
#include "kernels/planning/xattention/stride_mass.cuh"
#include "kernels/planning/xattention/stride_sums.cuh"

namespace s2o {
namespace device {

template <class Element, int kHeadDim>
__global__ void __launch_bounds__(kStrideThreads, 1)
    stride_sums_kernel(const __grid_constant__ XAttentionSumArgs args) {
  StrideSums<Element, kHeadDim>(args).run();
}

template <class Element, int kColumnsPerBlock>
__global__ void __launch_bounds__(kStrideMassThreads)
    stride_mass_kernel(const __grid_constant__ XAttentionMassArgs args) {
  StrideMass<Element, kColumnsPerBlock>(args).run();
}

}  // namespace device

void CudaPlanningKernels::stride_sums(const XAttentionSumArgs& args, KernelDType dtype,
                                      int head_dim) {
  if (variant_ == PlanningVariant::kSm90) {
    return launch_stride_sums_sm90(args, dtype, head_dim, stream_);
  }
  const std::int64_t num_blocks = static_cast<std::int64_t>(args.num_q_heads) *
                                  (args.end_tile - args.first_tile) * args.num_chunks;
  device::dispatch_element(dtype, head_dim, [&]<class Element, int kHeadDim>() {
    device::launch_blocks(device::stride_sums_kernel<Element, kHeadDim>, num_blocks,
                          device::kStrideThreads, sizeof(device::SharedStride), stream_,
                          "planning: antidiagonal sums", args);
  });
}

void CudaPlanningKernels::stride_mass(const XAttentionMassArgs& args, KernelDType dtype) {
  const std::int64_t num_blocks = static_cast<std::int64_t>(args.num_q_heads) * args.num_blocks;
  const auto launch = [&](auto kernel) {
    device::launch_blocks(kernel, num_blocks, device::kStrideMassThreads,
                          sizeof(device::SharedStrideMass), stream_, "planning: masses of blocks",
                          args);
  };
  // The head dimension does not matter here: 64 stands for any.
  device::dispatch_element(dtype, 64, [&]<class Element, int kHeadDim>() {
    device::dispatch_columns(args.columns_per_block, [&]<int kColumnsPerBlock>() {
      launch(device::stride_mass_kernel<Element, kColumnsPerBlock>);
    });
  });
}

}  // namespace s2o
