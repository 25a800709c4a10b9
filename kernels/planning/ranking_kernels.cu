// Kernel entries and launches of S2O's rankings beyond the mean query.
#include "kernels/planning/cuda_planning_kernels.h"
#include "kernels/planning/dispatch.cuh"
#include "kernels/planning/planning_sm90.h"
#include "kernels/planning/s2o/block_moments.cuh"
#include "kernels/planning/s2o/cluster_queries.cuh"
#include "kernels/planning/s2o/cluster_scores.cuh"
#include "kernels/planning/s2o/estimate_lse.cuh"

namespace s2o {
namespace device {

template <class Element, int kHeadDim>
__global__ void __launch_bounds__(kMomentThreads)
    block_moments_kernel(const __grid_constant__ MomentArgs args) {
  BlockMoments<Element, kHeadDim>(args).run();
}

template <class Element, int kHeadDim>
__global__ void __launch_bounds__(kLseThreads, 3)
    estimate_lse_kernel(const __grid_constant__ LseArgs args) {
  EstimateLse<Element, kHeadDim>(args).run();
}

template <class Element, int kHeadDim>
__global__ void __launch_bounds__(kClusterThreads, 2)
    cluster_queries_kernel(const __grid_constant__ ClusterArgs args) {
  ClusterQueries<Element, kHeadDim>(args).run();
}

template <class Element, int kHeadDim>
__global__ void __launch_bounds__(kClusterScoreThreads, 3)
    cluster_scores_kernel(const __grid_constant__ ClusterScoreArgs args) {
  ClusterScores<Element, kHeadDim>(args).run();
}

}  // namespace device

void CudaPlanningKernels::block_moments(const MomentArgs& args, KernelDType dtype, int head_dim) {
  device::dispatch_element(dtype, head_dim, [&]<class Element, int kHeadDim>() {
    device::launch_blocks(device::block_moments_kernel<Element, kHeadDim>,
                          static_cast<std::int64_t>(args.num_heads) * args.num_blocks,
                          device::kMomentThreads, sizeof(device::SharedMoments<kHeadDim>), stream_,
                          "planning: block moments", args);
  });
}

void CudaPlanningKernels::estimate_lse(const LseArgs& args, KernelDType dtype, int head_dim) {
  if (variant_ == PlanningVariant::kSm90) {
    return launch_estimate_lse_sm90(args, dtype, head_dim, stream_);
  }
  device::dispatch_element(dtype, head_dim, [&]<class Element, int kHeadDim>() {
    device::launch_blocks(device::estimate_lse_kernel<Element, kHeadDim>,
                          static_cast<std::int64_t>(args.num_q_heads) * args.num_blocks,
                          device::kLseThreads, sizeof(device::SharedLse<kHeadDim>), stream_,
                          "planning: normalisers", args);
  });
}

void CudaPlanningKernels::cluster_queries(const ClusterArgs& args, KernelDType dtype,
                                          int head_dim) {
  device::dispatch_element(dtype, head_dim, [&]<class Element, int kHeadDim>() {
    device::launch_blocks(
        device::cluster_queries_kernel<Element, kHeadDim>,
        static_cast<std::int64_t>(args.shape.num_lists()) * args.shape.num_segments,
        device::kClusterThreads, sizeof(device::SharedClusters<kHeadDim>), stream_,
        "planning: clusters of queries", args);
  });
}

void CudaPlanningKernels::cluster_scores(const ClusterScoreArgs& args, KernelDType dtype,
                                         int head_dim) {
  if (variant_ == PlanningVariant::kSm90) {
    return launch_cluster_scores_sm90(args, dtype, head_dim, stream_);
  }
  const KeyScoreArgs& rows = args.rows;
  device::dispatch_element(dtype, head_dim, [&]<class Element, int kHeadDim>() {
    device::launch_blocks(device::cluster_scores_kernel<Element, kHeadDim>,
                          static_cast<std::int64_t>(rows.num_batch_kv_heads) * rows.num_row_tiles *
                              rows.num_key_chunks,
                          device::kClusterScoreThreads,
                          sizeof(device::SharedClusterScores<kHeadDim>), stream_,
                          "planning: scores from clusters", args);
  });
}

}  // namespace s2o
