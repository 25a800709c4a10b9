#include "kernels/testing/attention_model.h"

#include <cstring>
#include <vector>

#include "kernels/attention/fold_sm80.cuh"
#include "kernels/attention/mainloop_sm80.cuh"
#include "kernels/attention/mainloop_sm90.cuh"
#include "kernels/common/error.h"
#include "kernels/testing/simt.h"

namespace s2o::testing {
namespace {

using device::Bf16;
using device::Fp16;
using device::StepDecision;
using device::TraitsSm80;
using device::TraitsSm90;

// ---- the portable kernel

template <class Traits>
void launch_sm80(const AttentionKernelArgs& args, std::uint64_t seed) {
  simt::launch({.num_blocks = args.num_tiles,
                .num_threads = Traits::kThreads,
                .shared_bytes = sizeof(device::SharedSm80<Traits>),
                .seed = seed},
               [&args] { device::MainloopSm80<Traits>(args).run(); });
}

template <class Element, int kHeadDim>
void launch_shape_sm80(const AttentionKernelArgs& args, TileShape tile, std::uint64_t seed) {
  if (tile.pv_terms == 3) {
    launch_sm80<TraitsSm80<Element, kHeadDim, 64, 64, 3>>(args, seed);
  } else if (tile.tile_m == 64 && tile.tile_n == 64) {
    launch_sm80<TraitsSm80<Element, kHeadDim, 64, 64, 1>>(args, seed);
  } else if (tile.tile_m == 64) {
    launch_sm80<TraitsSm80<Element, kHeadDim, 64, 128, 1>>(args, seed);
  } else if (tile.tile_n == 64) {
    launch_sm80<TraitsSm80<Element, kHeadDim, 128, 64, 1>>(args, seed);
  } else {
    launch_sm80<TraitsSm80<Element, kHeadDim, 128, 128, 1>>(args, seed);
  }
}

// A head_dim that this kernel alone has, in the shapes that it is built for.
template <int kHeadDim>
void launch_wide_sm80(const AttentionKernelArgs& args, TileShape tile, std::uint64_t seed) {
  if (tile.tile_m == 64) {
    launch_sm80<TraitsSm80<Bf16, kHeadDim, 64, 64, 1>>(args, seed);
  } else {
    launch_sm80<TraitsSm80<Bf16, kHeadDim, 128, 64, 1>>(args, seed);
  }
}

// ---- the Hopper kernel

template <class Traits>
void launch_instance_sm90(const AttentionKernelArgs& args, const Problem& problem,
                          std::uint64_t seed) {
  const auto map_of = [&](const void* base, int num_heads, int box_rows) {
    return device::model_tensor_map(
        device::mapped_heads(base, num_heads, problem.seqlen, problem.head_dim), box_rows);
  };
  const device::AttentionMaps maps{map_of(args.q, problem.num_q_heads, Traits::kTileM),
                                   {map_of(args.k, problem.num_kv_heads, Traits::kTileN),
                                    map_of(args.v, problem.num_kv_heads, Traits::kTileN)}};
  simt::launch({.num_blocks = 2,  // few, so that each runs several tiles
                .num_threads = Traits::kThreads,
                .shared_bytes = sizeof(device::SharedSm90<Traits>),
                .seed = seed},
               [&] { device::attention_sm90_body<Traits>(args, maps); });
}

template <class Element, int kHeadDim, int kTileM, int kTileN>
void launch_sm90(const AttentionKernelArgs& args, const Problem& problem, std::uint64_t seed) {
  device::with_decision_sm90(args, [&]<StepDecision kDecision>() {
    launch_instance_sm90<TraitsSm90<Element, kHeadDim, kTileM, kTileN, kDecision>>(args, problem,
                                                                                   seed);
  });
}

template <class Element, int kHeadDim>
void launch_shape_sm90(const AttentionKernelArgs& args, const Problem& problem, TileShape tile,
                       std::uint64_t seed) {
  if (tile.tile_m == 64 && tile.tile_n == 64) {
    launch_sm90<Element, kHeadDim, 64, 64>(args, problem, seed);
  } else if (tile.tile_m == 64) {
    launch_sm90<Element, kHeadDim, 64, 128>(args, problem, seed);
  } else if (tile.tile_n == 64) {
    launch_sm90<Element, kHeadDim, 128, 64>(args, problem, seed);
  } else {
    launch_sm90<Element, kHeadDim, 128, 128>(args, problem, seed);
  }
}

template <class Element, int kHeadDim>
void launch_kernel(AttentionKernel kernel, const AttentionKernelArgs& args, const Problem& problem,
                   TileShape tile, std::uint64_t seed) {
  if (kernel == AttentionKernel::kSm90) {
    launch_shape_sm90<Element, kHeadDim>(args, problem, tile, seed);
  } else {
    launch_shape_sm80<Element, kHeadDim>(args, tile, seed);
  }
}

// ---- folded columns

template <class Traits>
void launch_fold(const AttentionKernelArgs& args, const Problem& problem, std::uint64_t seed) {
  const int num_sets = args.pass.key_order != nullptr
                           ? problem.num_kv_heads * args.plan_heads_per_kv_head
                           : problem.num_kv_heads;
  const std::int64_t num_blocks = problem.seqlen / args.fold.fold_block;
  const auto size = static_cast<std::size_t>(num_blocks * num_sets * problem.head_dim);
  std::vector<float> k(size), v(size), k_squared(size);
  std::vector<std::uint16_t> mean_k(size), mean_v(size), variance(size);
  const bool columns = args.fold.kind != Compensation::kCentroid;
  const bool squares = args.fold.kind == Compensation::kBlocksVariance;
  const BlockSumsView sums{
      .k = k.data(),
      .v = v.data(),
      .k_squared = squares ? k_squared.data() : nullptr,
      .mean_k = columns ? mean_k.data() : nullptr,
      .mean_v = columns ? mean_v.data() : nullptr,
      .variance = squares ? variance.data() : nullptr,
      .num_blocks = num_blocks,
  };
  const int num_sums = static_cast<int>(num_blocks) * num_sets;
  simt::launch({.num_blocks = num_sums / 2 + 1, .num_threads = 64, .shared_bytes = 0, .seed = seed},
               [&] {
                 device::block_sums_warp<typename Traits::Element, Traits::kHeadDim>(
                     args, sums, num_sets, device::block_index() * 2 + device::warp_index());
               });
  simt::launch({.num_blocks = args.num_tiles,
                .num_threads = Traits::kThreads,
                .shared_bytes = sizeof(device::SharedFold<Traits>),
                .seed = seed},
               [&] { device::FoldSm80<Traits>(args, sums).run(); });
}

template <class Element, int kHeadDim>
void launch_fold_shape(const AttentionKernelArgs& args, const Problem& problem, int tile_m,
                       std::uint64_t seed) {
  if (tile_m == 64) {
    launch_fold<device::TraitsFold<Element, kHeadDim, 64>>(args, problem, seed);
  } else {
    launch_fold<device::TraitsFold<Element, kHeadDim, 128>>(args, problem, seed);
  }
}

// Whether the model runs on bf16, or the fp16 that it is built for.
bool is_bf16(const Problem& problem, KernelDType dtype) {
  const bool bf16 = dtype == KernelDType::kBf16;
  if (problem.head_dim != 64 && !bf16) {
    throw UnsupportedError("CPU model: fp16 is built for head_dim 64 only");
  }
  return bf16;
}

}  // namespace

void model_attention(AttentionKernel kernel, const AttentionKernelArgs& args,
                     const Problem& problem, KernelDType dtype, TileShape tile,
                     std::uint64_t seed) {
  const bool bf16 = is_bf16(problem, dtype);
  if (problem.head_dim == 96) {
    launch_wide_sm80<96>(args, tile, seed);
  } else if (problem.head_dim == 256) {
    launch_wide_sm80<256>(args, tile, seed);
  } else if (problem.head_dim == 128) {
    launch_kernel<Bf16, 128>(kernel, args, problem, tile, seed);
  } else if (bf16) {
    launch_kernel<Bf16, 64>(kernel, args, problem, tile, seed);
  } else {
    launch_kernel<Fp16, 64>(kernel, args, problem, tile, seed);
  }
}

void model_fold(const AttentionKernelArgs& args, const Problem& problem, KernelDType dtype,
                int tile_m, std::uint64_t seed) {
  const bool bf16 = is_bf16(problem, dtype);
  if (problem.head_dim == 128) {
    launch_fold_shape<Bf16, 128>(args, problem, tile_m, seed);
  } else if (bf16) {
    launch_fold_shape<Bf16, 64>(args, problem, tile_m, seed);
  } else {
    launch_fold_shape<Fp16, 64>(args, problem, tile_m, seed);
  }
}

}  // namespace s2o::testing
