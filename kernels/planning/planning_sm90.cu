// Kernel entries and launches of the planning kernels on warpgroup products.
#include "kernels/attention/tensor_map_cuda.h"
#include "kernels/planning/cluster_scores_sm90.cuh"
#include "kernels/planning/dispatch.cuh"
#include "kernels/planning/energy_rows_sm90.cuh"
#include "kernels/planning/estimate_lse_sm90.cuh"
#include "kernels/planning/planning_sm90.h"
#include "kernels/planning/stride_sums_sm90.cuh"

namespace s2o {
namespace device {

template <class Element, int kHeadDim, int kColumnsPerBlock>
__global__ void __launch_bounds__(product_threads(kStrideConsumers), 1)
    stride_sums_sm90_kernel(const __grid_constant__ StrideSumArgs args,
                            const __grid_constant__ StrideMaps maps) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  StrideSumsSm90<Element, kHeadDim, kColumnsPerBlock>(args, maps).run();
#else
  __trap();  // built for another architecture: the host never launches this
#endif
}

template <class Element, int kHeadDim>
__global__ void __launch_bounds__(product_threads(kLseConsumers), 1)
    estimate_lse_sm90_kernel(const __grid_constant__ LseArgs args,
                             const __grid_constant__ LseMaps maps) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  EstimateLseSm90<Element, kHeadDim>(args, maps).run();
#else
  __trap();  // built for another architecture: the host never launches this
#endif
}

template <class Element, int kHeadDim>
__global__ void __launch_bounds__(product_threads(kClusterConsumers), 1)
    cluster_scores_sm90_kernel(const __grid_constant__ ClusterScoreArgs args,
                               const __grid_constant__ ClusterGridSm90 grid) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  ClusterScoresSm90<Element, kHeadDim>(args, grid).run();
#else
  __trap();  // built for another architecture: the host never launches this
#endif
}

template <class Element, int kHeadDim, int kBranches>
__global__ void __launch_bounds__(kEnergyThreadsSm90, kEnergyBlocksSm90)
    energy_rows_sm90_kernel(const __grid_constant__ EnergyArgs args,
                            const __grid_constant__ EnergyGridSm90 grid) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  EnergyRowsSm90<Element, kHeadDim, kBranches>(args, grid).run();
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
template <int kConsumers, class Kernel, class... Args>
void launch_product(Kernel kernel, std::int64_t num_blocks, std::size_t shared_bytes,
                    cudaStream_t stream, const char* what, const Args&... args) {
  check_registers<kConsumers>(kernel, what);
  launch_blocks(kernel, num_blocks, product_threads(kConsumers), shared_bytes, stream, what,
                args...);
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

void launch_stride_sums_sm90(const StrideSumArgs& args, KernelDType dtype, int head_dim,
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
      device::launch_product<device::kStrideConsumers>(
          device::stride_sums_sm90_kernel<Element, kHeadDim, kColumnsPerBlock>, num_blocks,
          sizeof(device::SharedStrideSm90), stream, "planning: antidiagonal sums", args, maps);
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
    device::launch_product<device::kLseConsumers>(
        device::estimate_lse_sm90_kernel<Element, kHeadDim>, num_blocks,
        sizeof(device::SharedLseSm90<kHeadDim>), stream, "planning: normalisers", args, maps);
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
    device::launch_product<device::kClusterConsumers>(
        device::cluster_scores_sm90_kernel<Element, kHeadDim>,
        static_cast<std::int64_t>(args.rows.num_batch_kv_heads) * grid.num_row_tiles *
            grid.num_key_chunks,
        sizeof(device::SharedClusterScoresSm90<kHeadDim>), stream, "planning: scores from clusters",
        args, grid);
  });
}

bool energy_rows_sm90_takes(const EnergyArgs& args, int head_dim) {
  return device::energy_stages_sm90(args, head_dim) > 0;
}
void launch_energy_rows_sm90(const EnergyArgs& args, KernelDType dtype, int head_dim,
                             CudaStream stream) {
  const bool is_bf16 = dtype == KernelDType::kBf16;
  device::dispatch_element(dtype, head_dim, [&]<class Element, int kHeadDim>() {
    const device::EnergyGridSm90 grid = device::energy_grid_sm90(
        args, kHeadDim, [&](const device::MappedTensor& tensor, int box_rows) {
          return make_tensor_map(tensor, is_bf16, box_rows);
        });
    const auto launch = [&](auto kernel) {
      cuda_check(cudaFuncSetAttribute(kernel, cudaFuncAttributePreferredSharedMemoryCarveout,
                                      cudaSharedmemCarveoutMaxShared),
                 "planning: energies");
      device::launch_blocks(
          kernel, device::energy_blocks_sm90(args), device::kEnergyThreadsSm90,
          static_cast<std::size_t>(device::energy_bytes_sm90(args, kHeadDim, grid.num_stages)),
          stream, "planning: energies", args, grid);
    };
    args.lifts == nullptr ? launch(device::energy_rows_sm90_kernel<Element, kHeadDim, 1>)
                          : launch(device::energy_rows_sm90_kernel<Element, kHeadDim, 2>);
  });
}

}  // namespace s2o
