// How the kernels of an operation are written and launched.
//
// A kernel is a struct:
//   kName                          "planning: mean queries", for error messages
//   kThreads, kMinBlocks           launch bounds: threads of a block, blocks of a multiprocessor
//   static Grid grid(args)         blocks and shared memory
//   static S2O_DEVICE run(args)    what each thread does
// and with instructions of sm_90a
//   Added                          what the launch adds to the arguments: tensor maps, sizes
//   static Added added(args, host) from an AddedBy
//   grid(args, added), run(args, added)
//   kBlockRegisters, optional      registers that the warpgroups of a block exchange
//   kPrefersShared, optional       shared memory before L1
// The .cu files say which kernel runs an operation: see run_op.h.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

#include "kernels/common/error.h"
#include "kernels/common/tensor_map.h"
#include "kernels/device/platform.cuh"
#include "kernels/planning/run_op.h"

#if defined(__CUDACC__)
#include "kernels/common/block_registers.h"
#include "kernels/common/cuda_check.h"
#include "kernels/common/tensor_map_cuda.h"
#else
#include <algorithm>

#include "kernels/device/tma_sm90.cuh"
#endif

namespace s2o::device {

struct Grid {
  std::int64_t blocks = 0;
  std::size_t shared_bytes = 0;
  int threads = 0;  // 0: all of kThreads
};

// What `added` can ask for.
struct AddedBy {
  Elements elements;

  TensorMap tensor_map(const MappedTensor& tensor, int box_rows) const;
  int num_multiprocessors() const;
};

// body.template operator()<Element, kHeadDim>() for the elements of an operation.
template <class Body>
void dispatch_elements(const Elements& elements, const Body& body) {
  if (elements.head_dim != 64 && elements.head_dim != 128) {
    throw UnsupportedError("planning: head_dim is " + std::to_string(elements.head_dim) +
                           ", supported are 64 and 128");
  }
  const bool is_64 = elements.head_dim == 64;
  if (elements.dtype == KernelDType::kBf16) {
    is_64 ? body.template operator()<Bf16, 64>() : body.template operator()<Bf16, 128>();
  } else {
    is_64 ? body.template operator()<Fp16, 64>() : body.template operator()<Fp16, 128>();
  }
}
// The same for kernels that do not care about head_dim.
template <class Body>
void dispatch_element_type(const Elements& elements, const Body& body) {
  elements.dtype == KernelDType::kBf16 ? body.template operator()<Bf16>()
                                       : body.template operator()<Fp16>();
}

#if defined(__CUDACC__)

// What a .cu file is compiled for.
using PlanDevice = CudaPlanDevice;

template <class Kernel, class Args>
__global__ void __launch_bounds__(Kernel::kThreads, Kernel::kMinBlocks)
    planning_kernel(const __grid_constant__ Args args) {
  Kernel::run(args);
}
template <class Kernel, class Args, class Added>
__global__ void __launch_bounds__(Kernel::kThreads, Kernel::kMinBlocks)
    planning_sm90_kernel(const __grid_constant__ Args args, const __grid_constant__ Added added) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  Kernel::run(args, added);
#else
  __trap();  // built for another architecture: the host never launches this
#endif
}

template <class Kernel, class Entry, class... Args>
void launch_entry(Entry entry, const Grid& grid, CUstream_st* stream, const Args&... args) {
  if (grid.blocks == 0) return;
  if (grid.shared_bytes > 48 * 1024) {
    cuda_check(cudaFuncSetAttribute(entry, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                    static_cast<int>(grid.shared_bytes)),
               Kernel::kName);
  }
  const int threads = grid.threads > 0 ? grid.threads : Kernel::kThreads;
  entry<<<static_cast<unsigned>(grid.blocks), static_cast<unsigned>(threads), grid.shared_bytes,
          stream>>>(args...);
  cuda_check(cudaGetLastError(), Kernel::kName);
}

template <class Kernel, class Args>
void CudaPlanDevice::launch(const Args& args) const {
  launch_entry<Kernel>(planning_kernel<Kernel, Args>, Kernel::grid(args), stream, args);
}

inline TensorMap AddedBy::tensor_map(const MappedTensor& tensor, int box_rows) const {
  return make_tensor_map(tensor, elements.dtype == KernelDType::kBf16, box_rows);
}
inline int AddedBy::num_multiprocessors() const {
  int index = 0;
  int count = 0;
  cuda_check(cudaGetDevice(&index), "planning: current device");
  cuda_check(cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, index),
             "planning: number of multiprocessors");
  return count;
}

template <class Kernel, class Args>
void CudaPlanDevice::launch_sm90(const Args& args, const Elements& elements) const {
  using Added = typename Kernel::Added;
  const auto entry = planning_sm90_kernel<Kernel, Args, Added>;
  if constexpr (requires { Kernel::kBlockRegisters; }) {
    check_block_registers(entry, Kernel::kName, Kernel::kThreads, Kernel::kBlockRegisters);
  }
  if constexpr (requires { Kernel::kPrefersShared; }) {
    cuda_check(cudaFuncSetAttribute(entry, cudaFuncAttributePreferredSharedMemoryCarveout,
                                    cudaSharedmemCarveoutMaxShared),
               Kernel::kName);
  }
  const Added added = Kernel::added(args, AddedBy{elements});
  launch_entry<Kernel>(entry, Kernel::grid(args, added), stream, args, added);
}

#else

using PlanDevice = ModelPlanDevice;

template <class Kernel, class Body>
void launch_on_model(const Grid& grid, std::uint64_t* seed, const Body& body) {
  if (grid.blocks == 0) return;
  constexpr std::size_t kLeastShared = 16;
  simt::launch({.num_blocks = static_cast<int>(grid.blocks),
                .num_threads = grid.threads > 0 ? grid.threads : Kernel::kThreads,
                .shared_bytes = std::max(grid.shared_bytes, kLeastShared),
                .seed = (*seed)++},
               body);
}

template <class Kernel, class Args>
void ModelPlanDevice::launch(const Args& args) const {
  launch_on_model<Kernel>(Kernel::grid(args), seed, [&] { Kernel::run(args); });
}

inline TensorMap AddedBy::tensor_map(const MappedTensor& tensor, int box_rows) const {
  return model_tensor_map(tensor, box_rows);
}
// So many that the work of a small test is split as that of a large problem is.
inline int AddedBy::num_multiprocessors() const { return 1 << 20; }

template <class Kernel, class Args>
void ModelPlanDevice::launch_sm90(const Args& args, const Elements& elements) const {
  const auto added = Kernel::added(args, AddedBy{elements});
  launch_on_model<Kernel>(Kernel::grid(args, added), seed, [&] { Kernel::run(args, added); });
}

#endif

}  // namespace s2o::device
