// Kernel entries and launches of the planning kernels.
#include "kernels/common/cuda_check.h"
#include "kernels/planning/block_energy/block_radius.cuh"
#include "kernels/planning/block_energy/energy_rows.cuh"
#include "kernels/planning/cuda_planning_kernels.h"
#include "kernels/planning/dispatch.cuh"
#include "kernels/planning/last_queries/last_queries.cuh"
#include "kernels/planning/planning_sm90.h"
#include "kernels/planning/pooled/block_scores.cuh"
#include "kernels/planning/pooled/pool_blocks.cuh"
#include "kernels/planning/pooled/select_rows.cuh"
#include "kernels/planning/s2o/key_scores.cuh"
#include "kernels/planning/s2o/mean_queries.cuh"
#include "kernels/planning/s2o/rank_history.cuh"

namespace s2o {
namespace device {

template <class Element, int kHeadDim, bool kNormalizers>
__global__ void __launch_bounds__(kMeanThreads, kNormalizers ? 3 : 4)
    mean_queries_kernel(const __grid_constant__ MeanQueryArgs args) {
  MeanQueries<Element, kHeadDim, kNormalizers>(args).run();
}

template <class Element, int kHeadDim, bool kDiagonal>
__global__ void __launch_bounds__(kScoreThreads, kDiagonal ? 2 : 3)
    key_scores_kernel(const __grid_constant__ KeyScoreArgs args) {
  KeyScores<Element, kHeadDim, kDiagonal>(args).run();
}

__global__ void __launch_bounds__(kRankThreads, 2)
    rank_history_kernel(const __grid_constant__ RankArgs args) {
  RankHistory(args).run();
}

template <class Element, int kHeadDim>
__global__ void __launch_bounds__(kPoolThreads, 6)
    pool_blocks_kernel(const __grid_constant__ PoolArgs args) {
  PoolBlocks<Element, kHeadDim>(args).run();
}

template <class Element, int kHeadDim>
__global__ void __launch_bounds__(kPoolThreads)
    column_sums_kernel(const __grid_constant__ ColumnMeanArgs args) {
  column_sums_part<Element, kHeadDim>(args);
}
template <class Element, int kHeadDim>
__global__ void __launch_bounds__(kHeadDim)
    column_means_kernel(const __grid_constant__ ColumnMeanArgs args) {
  column_means_head<Element, kHeadDim>(args);
}

template <class Element, int kHeadDim>
__global__ void __launch_bounds__(kBlockScoreThreads)
    block_scores_kernel(const __grid_constant__ BlockScoreArgs args) {
  BlockScores<Element, kHeadDim>(args).run();
}

template <class Element>
__global__ void __launch_bounds__(32 * kSelectWarps)
    select_rows_kernel(const __grid_constant__ SelectArgs args) {
  SelectRow<Element>(args, static_cast<int>(blockDim.x) / 32).run();
}

template <class Element, int kHeadDim>
__global__ void __launch_bounds__(kEnergyThreads, 2)
    energy_rows_kernel(const __grid_constant__ BlockEnergyArgs args) {
  EnergyRows<Element, kHeadDim>(args).run();
}

template <class Element, int kHeadDim>
__global__ void __launch_bounds__(kRadiusThreads)
    block_radius_kernel(const __grid_constant__ BlockRadiusArgs args) {
  block_radius<Element, kHeadDim>(args);
}
__global__ void __launch_bounds__(kLiftThreads)
    radius_lifts_kernel(const __grid_constant__ BlockRadiusArgs args) {
  radius_lifts_head(args);
}

template <class Element, int kHeadDim>
__global__ void __launch_bounds__(kLastQueryThreads, 2)
    reduce_last_queries_kernel(const __grid_constant__ LastQueryArgs args) {
  LastQueryPass<Element, kHeadDim>(args).reduce_chunk();
}
__global__ void __launch_bounds__(kLastQueries)
    combine_last_queries_kernel(const __grid_constant__ LastQueryArgs args) {
  combine_last_queries(args);
}
template <class Element, int kHeadDim>
__global__ void __launch_bounds__(kLastQueryThreads, 2)
    sum_last_queries_kernel(const __grid_constant__ LastQueryArgs args) {
  LastQueryPass<Element, kHeadDim>(args).sum_chunk();
}
__global__ void __launch_bounds__(kDistanceThreads)
    combine_distances_kernel(const __grid_constant__ LastQueryArgs args) {
  combine_distances(args);
}
__global__ void __launch_bounds__(kSegmentOrderThreads)
    order_segment_kernel(const __grid_constant__ SegmentOrderArgs args) {
  order_segment(args);
}

}  // namespace device

void CudaPlanningKernels::clear(void* array, std::size_t bytes) {
  if (bytes > 0) cuda_check(cudaMemsetAsync(array, 0, bytes, stream_), "planning: clear");
}

void CudaPlanningKernels::mean_queries(const MeanQueryArgs& args, KernelDType dtype, int head_dim) {
  const std::int64_t rows =
      static_cast<std::int64_t>(args.shape.num_lists()) * args.shape.num_segments;
  device::dispatch_element(dtype, head_dim, [&]<class Element, int kHeadDim>() {
    const auto launch = [&]<bool kNormalizers>() {
      device::launch_blocks(device::mean_queries_kernel<Element, kHeadDim, kNormalizers>, rows,
                            device::kMeanThreads,
                            sizeof(device::SharedMeans<kHeadDim, kNormalizers>), stream_,
                            "planning: mean queries", args);
    };
    args.lse == nullptr ? launch.template operator()<false>() : launch.template operator()<true>();
  });
}

void CudaPlanningKernels::key_scores(const KeyScoreArgs& args, KernelDType dtype, int head_dim) {
  const std::int64_t num_blocks =
      static_cast<std::int64_t>(args.num_batch_kv_heads) * args.num_row_tiles * args.num_key_chunks;
  device::dispatch_element(dtype, head_dim, [&]<class Element, int kHeadDim>() {
    if (args.variances == nullptr) {
      device::launch_blocks(device::key_scores_kernel<Element, kHeadDim, false>, num_blocks,
                            device::kScoreThreads, sizeof(device::SharedScores<kHeadDim, false>),
                            stream_, "planning: key scores", args);
    } else {
      device::launch_blocks(device::key_scores_kernel<Element, kHeadDim, true>, num_blocks,
                            device::kScoreThreads, sizeof(device::SharedScores<kHeadDim, true>),
                            stream_, "planning: key scores", args);
    }
  });
}

void CudaPlanningKernels::rank_history(const RankArgs& args) {
  device::launch_blocks(
      device::rank_history_kernel,
      static_cast<std::int64_t>(args.num_batch_lists) * (args.end_segment - args.first_segment),
      device::kRankThreads, sizeof(device::SharedRank), stream_, "planning: rank history", args);
}

void CudaPlanningKernels::pool_blocks(const PoolArgs& args, KernelDType dtype, int head_dim) {
  device::dispatch_element(dtype, head_dim, [&]<class Element, int kHeadDim>() {
    device::launch_blocks(device::pool_blocks_kernel<Element, kHeadDim>,
                          static_cast<std::int64_t>(args.num_heads) * args.num_blocks,
                          device::kPoolThreads, sizeof(device::SharedPool<kHeadDim>), stream_,
                          "planning: pool blocks", args);
  });
}

void CudaPlanningKernels::column_means(const ColumnMeanArgs& args, KernelDType dtype,
                                       int head_dim) {
  device::dispatch_element(dtype, head_dim, [&]<class Element, int kHeadDim>() {
    device::launch_blocks(device::column_sums_kernel<Element, kHeadDim>,
                          static_cast<std::int64_t>(args.num_heads) * args.num_parts,
                          device::kPoolThreads, sizeof(device::SharedPool<kHeadDim>), stream_,
                          "planning: column sums", args);
    device::launch_blocks(device::column_means_kernel<Element, kHeadDim>, args.num_heads, kHeadDim,
                          0, stream_, "planning: column means", args);
  });
}

void CudaPlanningKernels::block_scores(const BlockScoreArgs& args, KernelDType dtype,
                                       int head_dim) {
  const std::int64_t num_blocks = static_cast<std::int64_t>(args.num_heads) *
                                  device::ceil_div(args.num_rows, device::kBlockScoreTile) *
                                  device::ceil_div(args.num_kv_blocks, device::kBlockScoreTile);
  device::dispatch_element(dtype, head_dim, [&]<class Element, int kHeadDim>() {
    device::launch_blocks(device::block_scores_kernel<Element, kHeadDim>, num_blocks,
                          device::kBlockScoreThreads, sizeof(device::SharedBlockScores<kHeadDim>),
                          stream_, "planning: block scores", args);
  });
}

void CudaPlanningKernels::select_rows(const SelectArgs& args, KernelDType dtype) {
  const int warp_bytes = device::select_bytes(args.num_kv_blocks);
  const int warps = device::select_warps(args.num_kv_blocks);
  const std::int64_t rows = static_cast<std::int64_t>(args.num_heads) * args.num_rows;
  const auto launch = [&](auto kernel) {
    device::launch_blocks(kernel, (rows + warps - 1) / warps, 32 * warps,
                          static_cast<std::size_t>(warps) * static_cast<std::size_t>(warp_bytes),
                          stream_, "planning: select rows", args);
  };
  if (dtype == KernelDType::kBf16) {
    launch(device::select_rows_kernel<device::Bf16>);
  } else {
    launch(device::select_rows_kernel<device::Fp16>);
  }
}

void CudaPlanningKernels::energy_rows(const BlockEnergyArgs& args, KernelDType dtype,
                                      int head_dim) {
  if (variant_ == PlanningVariant::kSm90 && energy_rows_sm90_takes(args, head_dim)) {
    return launch_energy_rows_sm90(args, dtype, head_dim, stream_);
  }
  device::dispatch_element(dtype, head_dim, [&]<class Element, int kHeadDim>() {
    device::launch_blocks(
        device::energy_rows_kernel<Element, kHeadDim>,
        static_cast<std::int64_t>(args.num_plan_heads) * (args.end_tile - args.first_tile),
        device::kEnergyThreads,
        static_cast<std::size_t>(device::energy_bytes<kHeadDim>(args.num_blocks)), stream_,
        "planning: energies", args);
  });
}

void CudaPlanningKernels::radius_lifts(const BlockRadiusArgs& args, KernelDType dtype,
                                       int head_dim) {
  device::dispatch_element(dtype, head_dim, [&]<class Element, int kHeadDim>() {
    device::launch_blocks(device::block_radius_kernel<Element, kHeadDim>,
                          static_cast<std::int64_t>(args.num_kv_heads) * args.num_blocks,
                          device::kRadiusThreads, sizeof(device::SharedRadius<kHeadDim>), stream_,
                          "planning: radii", args);
  });
  device::launch_blocks(device::radius_lifts_kernel, args.num_kv_heads, device::kLiftThreads,
                        sizeof(float) * (static_cast<std::size_t>(args.num_blocks) + 4), stream_,
                        "planning: lifts", args);
}

void CudaPlanningKernels::last_queries(const LastQueryArgs& args, KernelDType dtype, int head_dim) {
  const std::int64_t num_blocks = static_cast<std::int64_t>(args.num_q_heads) * args.num_chunks;
  device::dispatch_element(dtype, head_dim, [&]<class Element, int kHeadDim>() {
    const std::size_t bytes = device::last_query_bytes<kHeadDim>(args);
    device::launch_blocks(device::reduce_last_queries_kernel<Element, kHeadDim>, num_blocks,
                          device::kLastQueryThreads, bytes, stream_,
                          "planning: normalisers of the last queries", args);
    device::launch_blocks(device::combine_last_queries_kernel, args.num_q_heads, kLastQueries, 0,
                          stream_, "planning: normalisers of the last queries", args);
    device::launch_blocks(device::sum_last_queries_kernel<Element, kHeadDim>, num_blocks,
                          device::kLastQueryThreads, bytes, stream_,
                          "planning: mass of the last queries", args);
  });
  if (args.distance_mass == nullptr) return;
  const std::int64_t blocks =
      (args.seqlen + device::kDistanceThreads - 1) / device::kDistanceThreads;
  device::launch_blocks(device::combine_distances_kernel, args.num_q_heads * blocks,
                        device::kDistanceThreads, 0, stream_, "planning: mass by distance", args);
}

void CudaPlanningKernels::order_segments(const SegmentOrderArgs& args) {
  const std::int64_t segments = (args.seqlen + args.segment - 1) / args.segment;
  device::launch_blocks(device::order_segment_kernel, args.num_heads * segments,
                        device::kSegmentOrderThreads,
                        sizeof(float) * static_cast<std::size_t>(args.segment), stream_,
                        "planning: order of segments", args);
}

}  // namespace s2o
