// Kernel entries and launchers of the kernels that plan S2O.
#include "kernels/common/cuda_check.h"
#include "kernels/planning/dispatch.cuh"
#include "kernels/planning/key_scores.cuh"
#include "kernels/planning/mean_queries.cuh"
#include "kernels/planning/rank_history.cuh"
#include "kernels/planning/s2o_launch.h"

namespace s2o {
namespace device {

template <class Element, int kHeadDim>
__global__ void __launch_bounds__(kMeanThreads, 4)
    mean_queries_kernel(const __grid_constant__ MeanQueryArgs args) {
  MeanQueries<Element, kHeadDim>(args).run();
}

template <class Element, int kHeadDim, bool kDiagonal>
__global__ void __launch_bounds__(kScoreThreads, 2)
    key_scores_kernel(const __grid_constant__ KeyScoreArgs args) {
  KeyScores<Element, kHeadDim, kDiagonal>(args).run();
}

__global__ void __launch_bounds__(kRankThreads, 2)
    rank_history_kernel(const __grid_constant__ RankArgs args) {
  RankHistory(args).run();
}

}  // namespace device

void launch_mean_queries(const MeanQueryArgs& args, KernelDType dtype, int head_dim,
                         CudaStream stream) {
  device::dispatch_element(dtype, head_dim, [&]<class Element, int kHeadDim>() {
    device::launch_blocks(
        device::mean_queries_kernel<Element, kHeadDim>,
        static_cast<std::int64_t>(args.shape.num_lists()) * args.shape.num_segments,
        device::kMeanThreads, sizeof(device::SharedMeans<kHeadDim>), stream,
        "planning: mean queries", args);
  });
}

void launch_key_scores(const KeyScoreArgs& args, KernelDType dtype, int head_dim,
                       CudaStream stream) {
  const std::int64_t num_blocks =
      static_cast<std::int64_t>(args.num_batch_kv_heads) * args.num_row_tiles * args.num_key_chunks;
  device::dispatch_element(dtype, head_dim, [&]<class Element, int kHeadDim>() {
    if (args.variances == nullptr) {
      device::launch_blocks(device::key_scores_kernel<Element, kHeadDim, false>, num_blocks,
                            device::kScoreThreads, sizeof(device::SharedScores<kHeadDim, false>),
                            stream, "planning: key scores", args);
    } else {
      device::launch_blocks(device::key_scores_kernel<Element, kHeadDim, true>, num_blocks,
                            device::kScoreThreads, sizeof(device::SharedScores<kHeadDim, true>),
                            stream, "planning: key scores", args);
    }
  });
}

void launch_rank_history(const RankArgs& args, CudaStream stream) {
  device::launch_blocks(
      device::rank_history_kernel,
      static_cast<std::int64_t>(args.num_batch_lists) * (args.end_segment - args.first_segment),
      device::kRankThreads, sizeof(device::SharedRank), stream, "planning: rank history", args);
}

}  // namespace s2o
