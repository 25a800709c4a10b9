// Kernel entries and launches of the planning kernels on warpgroup products.
#include "kernels/attention/tensor_map_cuda.h"
#include "kernels/planning/block_energy/energy_rows_sm90.cuh"
#include "kernels/planning/dispatch.cuh"
#include "kernels/planning/planning_sm90.h"
#include "kernels/planning/s2o/cluster_scores_sm90.cuh"
#include "kernels/planning/s2o/estimate_lse_sm90.cuh"
#include "kernels/planning/xattention/stride_sums_sm90.cuh"

namespace s2o {
namespace device {

// The entry of every kernel here: Body(args, grid).run(), where `grid` is what the launch adds.
template <class Body, int kThreads, int kMinBlocks, class Args, class Grid>
__global__ void __launch_bounds__(kThreads, kMinBlocks)
    planning_sm90_kernel(const __grid_constant__ Args args, const __grid_constant__ Grid grid) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  Body(args, grid).run();
#else
  __trap();  // built for another architecture: the host never launches this
#endif
}

// Warpgroups exchange registers of what the block was launched with; fewer would hang.
template <int kConsumers, class Kernel>
void check_registers(Kernel kernel, const char* what) {
  cudaFuncAttributes attributes{};
  cuda_check(cudaFuncGetAttributes(&attributes, kernel), what);
  const int needed =
      128 * (filling_registers(kConsumers) + kConsumers * consumer_registers(kConsumers));
  const int launched = attributes.numRegs * product_threads(kConsumers);
  if (launched < needed) {
    throw UnsupportedError(std::string(what) + ": built with " + std::to_string(launched) +
                           " registers a block, the warpgroups need " + std::to_string(needed));
  }
}
template <class Body, int kConsumers, class Args, class Grid>
void launch_product(std::int64_t num_blocks, std::size_t shared_bytes, cudaStream_t stream,
                    const char* what, const Args& args, const Grid& grid) {
  const auto kernel = planning_sm90_kernel<Body, product_threads(kConsumers), 1, Args, Grid>;
  check_registers<kConsumers>(kernel, what);
  launch_blocks(kernel, num_blocks, product_threads(kConsumers), shared_bytes, stream, what, args,
                grid);
}

int num_multiprocessors() {
  int index = 0;
  int count = 0;
  cuda_check(cudaGetDevice(&index), "planning: current device");
  cuda_check(cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, index),
             "planning: number of multiprocessors");
  return count;
}

}  // namespace device

void launch_stride_sums_sm90(const XAttentionSumArgs& args, KernelDType dtype, int head_dim,
                             CudaStream stream) {
  const bool is_bf16 = dtype == KernelDType::kBf16;
  const std::int64_t num_blocks = static_cast<std::int64_t>(args.num_q_heads) *
                                  (args.end_tile - args.first_tile) * args.num_chunks;
  device::dispatch_element(dtype, head_dim, [&]<class Element, int kHeadDim>() {
    const device::StrideMaps maps =
        device::stride_maps(args, kHeadDim, [&](const device::MappedTensor& tensor, int box_rows) {
          return make_tensor_map(tensor, is_bf16, box_rows);
        });
    device::dispatch_columns(args.columns_per_block, [&]<int kColumnsPerBlock>() {
      device::launch_product<device::StrideSumsSm90<Element, kHeadDim, kColumnsPerBlock>,
                             device::kStrideConsumers>(num_blocks, sizeof(device::SharedStrideSm90),
                                                       stream, "planning: antidiagonal sums", args,
                                                       maps);
    });
  });
}

void launch_estimate_lse_sm90(const LseArgs& args, KernelDType dtype, int head_dim,
                              CudaStream stream) {
  const bool is_bf16 = dtype == KernelDType::kBf16;
  const std::int64_t num_blocks =
      static_cast<std::int64_t>(args.num_q_heads / args.group_size) * args.num_blocks;
  device::dispatch_element(dtype, head_dim, [&]<class Element, int kHeadDim>() {
    const device::LseMaps maps =
        device::lse_maps(args, kHeadDim, [&](const device::MappedTensor& tensor, int box_rows) {
          return make_tensor_map(tensor, is_bf16, box_rows);
        });
    device::launch_product<device::EstimateLseSm90<Element, kHeadDim>, device::kLseConsumers>(
        num_blocks, sizeof(device::SharedLseSm90<kHeadDim>), stream, "planning: normalisers", args,
        maps);
  });
}

void launch_cluster_scores_sm90(const ClusterScoreArgs& args, KernelDType dtype, int head_dim,
                                CudaStream stream) {
  const bool is_bf16 = dtype == KernelDType::kBf16;
  const int chunk_keys = device::cluster_chunk_sm90(args.rows, device::num_multiprocessors());
  device::dispatch_element(dtype, head_dim, [&]<class Element, int kHeadDim>() {
    const device::ClusterGridSm90 grid = device::cluster_grid_sm90(
        args.rows, kHeadDim, chunk_keys, [&](const device::MappedTensor& tensor, int box_rows) {
          return make_tensor_map(tensor, is_bf16, box_rows);
        });
    device::launch_product<device::ClusterScoresSm90<Element, kHeadDim>, device::kClusterConsumers>(
        static_cast<std::int64_t>(args.rows.num_batch_kv_heads) * grid.num_row_tiles *
            grid.num_key_chunks,
        sizeof(device::SharedClusterScoresSm90<kHeadDim>), stream, "planning: scores from clusters",
        args, grid);
  });
}

bool energy_rows_sm90_takes(const BlockEnergyArgs& args, int head_dim) {
  return device::energy_stages_sm90(args, head_dim) > 0;
}
void launch_energy_rows_sm90(const BlockEnergyArgs& args, KernelDType dtype, int head_dim,
                             CudaStream stream) {
  const bool is_bf16 = dtype == KernelDType::kBf16;
  device::dispatch_element(dtype, head_dim, [&]<class Element, int kHeadDim>() {
    const device::EnergyGridSm90 grid = device::energy_grid_sm90(
        args, kHeadDim, [&](const device::MappedTensor& tensor, int box_rows) {
          return make_tensor_map(tensor, is_bf16, box_rows);
        });
    const auto launch = [&]<int kBranches>() {
      const auto kernel =
          device::planning_sm90_kernel<device::EnergyRowsSm90<Element, kHeadDim, kBranches>,
                                       device::kEnergyThreadsSm90, device::kEnergyBlocksSm90,
                                       BlockEnergyArgs, device::EnergyGridSm90>;
      cuda_check(cudaFuncSetAttribute(kernel, cudaFuncAttributePreferredSharedMemoryCarveout,
                                      cudaSharedmemCarveoutMaxShared),
                 "planning: energies");
      device::launch_blocks(
          kernel, device::energy_blocks_sm90(args), device::kEnergyThreadsSm90,
          static_cast<std::size_t>(device::energy_bytes_sm90(args, kHeadDim, grid.num_stages)),
          stream, "planning: energies", args, grid);
    };
    args.lifts == nullptr ? launch.template operator()<1>() : launch.template operator()<2>();
  });
}

}  // namespace s2o
