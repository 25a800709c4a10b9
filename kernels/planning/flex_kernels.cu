// Kernel entries and launches of FlexPrefill.
#include "kernels/planning/cuda_planning_kernels.h"
#include "kernels/planning/dispatch.cuh"
#include "kernels/planning/flexprefill/flex_heads.cuh"
#include "kernels/planning/flexprefill/flex_rows.cuh"

namespace s2o {
namespace device {

template <class Element, int kHeadDim>
__global__ void __launch_bounds__(kCutThreads)
    flex_heads_kernel(const __grid_constant__ FlexHeadArgs args) {
  FlexHead<Element, kHeadDim>(args).run();
}
template <class Element, int kHeadDim>
__global__ void __launch_bounds__(kFlexThreads)
    scale_query_means_kernel(const __grid_constant__ FlexMeanArgs args) {
  scale_query_means<Element, kHeadDim>(args);
}
template <class Element>
__global__ void __launch_bounds__(kFlexThreads)
    flex_softmax_kernel(const __grid_constant__ FlexRowArgs args) {
  flex_softmax<Element>(args);
}
__global__ void __launch_bounds__(kCutThreads)
    flex_cut_kernel(const __grid_constant__ FlexRowArgs args) {
  flex_cut(args);
}
__global__ void __launch_bounds__(kFlexThreads)
    flex_items_kernel(const __grid_constant__ FlexRowArgs args) {
  flex_items(args);
}

std::int64_t blocks_of_rows(const FlexRowArgs& args) {
  return (static_cast<std::int64_t>(args.num_heads) * args.num_blocks + kFlexWarps - 1) /
         kFlexWarps;
}

}  // namespace device

void CudaPlanningKernels::flex_heads(const FlexHeadArgs& args, KernelDType dtype, int head_dim) {
  device::dispatch_element(dtype, head_dim, [&]<class Element, int kHeadDim>() {
    device::launch_blocks(device::flex_heads_kernel<Element, kHeadDim>, args.num_heads,
                          device::kCutThreads, device::flex_bytes<kHeadDim>(args.num_blocks),
                          stream_, "planning: patterns of heads", args);
  });
}

void CudaPlanningKernels::scale_query_means(const FlexMeanArgs& args, KernelDType dtype,
                                            int head_dim) {
  const std::int64_t elements =
      static_cast<std::int64_t>(args.num_heads) * args.num_blocks * head_dim;
  device::dispatch_element(dtype, head_dim, [&]<class Element, int kHeadDim>() {
    device::launch_blocks(device::scale_query_means_kernel<Element, kHeadDim>,
                          (elements + device::kFlexThreads - 1) / device::kFlexThreads,
                          device::kFlexThreads, 0, stream_, "planning: scale of means", args);
  });
}

void CudaPlanningKernels::flex_cuts(const FlexRowArgs& args, KernelDType dtype) {
  // The head dimension does not matter here: 64 stands for any.
  device::dispatch_element(dtype, 64, [&]<class Element, int kHeadDim>() {
    device::launch_blocks(device::flex_softmax_kernel<Element>, device::blocks_of_rows(args),
                          device::kFlexThreads, 0, stream_, "planning: block probabilities", args);
  });
  device::launch_blocks(device::flex_cut_kernel, args.num_heads, device::kCutThreads,
                        sizeof(device::SharedCut), stream_, "planning: cuts of heads", args);
}

void CudaPlanningKernels::flex_items(const FlexRowArgs& args) {
  const std::size_t words = static_cast<std::size_t>(device::ceil_div(args.num_blocks, 32));
  device::launch_blocks(device::flex_items_kernel, device::blocks_of_rows(args),
                        device::kFlexThreads, device::kFlexWarps * words * sizeof(std::uint32_t),
                        stream_, "planning: items of rows", args);
}

}  // namespace s2o
