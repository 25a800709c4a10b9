// Kernel entries and launches of S2O's query order.
#include "kernels/planning/cuda_planning_kernels.h"
#include "kernels/planning/dispatch.cuh"
#include "kernels/planning/s2o/query_order.cuh"

namespace s2o {
namespace device {

template <class Element, int kHeadDim>
__global__ void __launch_bounds__(kGuideThreads)
    sum_segment_kernel(const __grid_constant__ QueryOrderArgs args) {
  sum_segment<Element, kHeadDim>(args);
}
template <int kHeadDim>
__global__ void __launch_bounds__(kHeadDim)
    make_guides_kernel(const __grid_constant__ QueryOrderArgs args) {
  make_guides<kHeadDim>(args);
}
template <class Element, int kHeadDim>
__global__ void __launch_bounds__(kGuideThreads)
    order_queries_kernel(const __grid_constant__ QueryOrderArgs args) {
  order_queries<Element, kHeadDim>(args);
}

}  // namespace device

void CudaPlanningKernels::order_queries(const QueryOrderArgs& args, KernelDType dtype,
                                        int head_dim) {
  const std::int64_t segments = args.shape.num_segments;
  device::dispatch_element(dtype, head_dim, [&]<class Element, int kHeadDim>() {
    device::launch_blocks(device::sum_segment_kernel<Element, kHeadDim>,
                          args.num_sources() * segments, device::kGuideThreads,
                          sizeof(device::SharedGuideSums<kHeadDim>), stream_,
                          "planning: sums of segments", args);
    device::launch_blocks(device::make_guides_kernel<kHeadDim>, args.num_sources(), kHeadDim, 0,
                          stream_, "planning: guides", args);
    device::launch_blocks(device::order_queries_kernel<Element, kHeadDim>,
                          args.num_q_heads * segments, device::kGuideThreads,
                          sizeof(float) * static_cast<std::size_t>(args.shape.segment_size),
                          stream_, "planning: order of queries", args);
  });
}

}  // namespace s2o
