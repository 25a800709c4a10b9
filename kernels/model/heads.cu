// Between token-major rows of the projections and head-major tensors of attention.
#include <string>
#include <type_traits>

#include "kernels/common/cuda_check.h"
#include "kernels/model/elements.cuh"
#include "kernels/model/model_kernels.h"

namespace s2o {
namespace device {

constexpr int kHeadThreads = 256;
constexpr int kRowsPerThread = 4;  // independent loads in flight
constexpr int kTableThreads = 256;

// (cosine, sine) of four neighbouring pairs.
struct Rotation {
  float4 cosine, sine;
};
__device__ inline Rotation load_rotation(const float* source) {
  const float4 a = load4(source);
  const float4 b = load4(source + 4);
  return {{a.x, a.z, b.x, b.z}, {a.y, a.w, b.y, b.w}};
}

// Lanes for a head: a power of two, which lanes of a warp can sum over; head_dim 96 leaves some
// idle.
S2O_ANYWHERE constexpr int head_lanes(int head_dim) {
  int lanes = 1;
  while (lanes < rotary_lanes(head_dim)) lanes *= 2;
  return lanes;
}

// Block (tile of rows, fused head). A lane group holds a head of one row.
template <class Element, int kHeadDim>
__global__ void __launch_bounds__(kHeadThreads)
    split_heads_kernel(const __grid_constant__ SplitHeadsArgs args) {
  constexpr int kLanes = head_lanes(kHeadDim);
  constexpr int kGroups = kHeadThreads / kLanes;
  const int lane = static_cast<int>(threadIdx.x) % kLanes;
  const int group = static_cast<int>(threadIdx.x) / kLanes;
  const bool idle = lane >= rotary_lanes(kHeadDim);
  const RotaryLane at = rotary_lane(idle ? 0 : lane, kHeadDim);
  const FusedHead head = args.layout.head_at(static_cast<int>(blockIdx.y));
  const std::int64_t column = static_cast<std::int64_t>(blockIdx.y) * kHeadDim;
  const std::int64_t tile = static_cast<std::int64_t>(blockIdx.x) * (kGroups * kRowsPerThread);

  uint2 low[kRowsPerThread], high[kRowsPerThread];
#pragma unroll
  for (int r = 0; r < kRowsPerThread; ++r) {
    const std::int64_t row = tile + r * kGroups + group;
    low[r] = high[r] = {0u, 0u};
    if (row >= args.rows || idle) continue;
    const std::uint16_t* const source = args.fused + row * args.layout.width() + column;
    low[r] = load4_16(source + at.first);
    high[r] = load4_16(source + at.second);
  }
  const float* const norm = head.kind == HeadKind::kQuery ? args.q_norm
                            : head.kind == HeadKind::kKey ? args.k_norm
                                                          : nullptr;
  std::uint16_t* const target = head.kind == HeadKind::kQuery ? args.q
                                : head.kind == HeadKind::kKey ? args.k
                                                              : args.v;
#pragma unroll
  for (int r = 0; r < kRowsPerThread; ++r) {
    const std::int64_t row = tile + r * kGroups + group;
    float4 first = unpack4<__nv_bfloat16>(low[r]);
    float4 second = unpack4<__nv_bfloat16>(high[r]);
    if (args.bias != nullptr && !idle) {
      first = first + load4(args.bias + column + at.first);
      second = second + load4(args.bias + column + at.second);
    }
    if (norm != nullptr) {  // whole warps: the head is the block's
      const float squares = sum_lanes<kLanes>(sum_of_squares(first) + sum_of_squares(second));
      const float scale = 1.0f / sqrtf(squares / kHeadDim + args.eps);
      first = first * scale * load4(norm + at.first);
      second = second * scale * load4(norm + at.second);
    }
    if (row >= args.rows || idle) continue;
    const std::int64_t token = args.first_row + row;
    if (head.kind != HeadKind::kValue) {
      const Rotation turn = load_rotation(args.rope + token * kHeadDim + 2 * at.first);
      const float4 rotated = first * turn.cosine - second * turn.sine;
      second = second * turn.cosine + first * turn.sine;
      first = rotated;
    }
    std::uint16_t* const out = target + head_major_offset(head.head, args.seqlen, token, kHeadDim);
    *reinterpret_cast<uint2*>(out + at.first) = pack4<Element>(first);
    *reinterpret_cast<uint2*>(out + at.second) = pack4<Element>(second);
  }
}

// Block (tile of rows, head). A thread moves 8 elements of each of its rows.
template <class Element>
__global__ void __launch_bounds__(kHeadThreads)
    join_heads_kernel(const __grid_constant__ JoinHeadsArgs args) {
  const int lanes = args.head_dim / 8;
  const int lane = static_cast<int>(threadIdx.x) % lanes;
  const int group = static_cast<int>(threadIdx.x) / lanes;
  const int num_groups = kHeadThreads / lanes;
  if (group >= num_groups) return;
  const int head = static_cast<int>(blockIdx.y);
  const std::int64_t width = static_cast<std::int64_t>(args.num_heads) * args.head_dim;
  const std::int64_t tile = static_cast<std::int64_t>(blockIdx.x) * (num_groups * kRowsPerThread);
  uint4 values[kRowsPerThread];
#pragma unroll
  for (int r = 0; r < kRowsPerThread; ++r) {
    const std::int64_t row = tile + r * num_groups + group;
    if (row >= args.rows) continue;
    const std::int64_t at =
        head_major_offset(head, args.seqlen, args.first_row + row, args.head_dim);
    values[r] = *reinterpret_cast<const uint4*>(args.heads + at + lane * 8);
  }
#pragma unroll
  for (int r = 0; r < kRowsPerThread; ++r) {
    const std::int64_t row = tile + r * num_groups + group;
    if (row >= args.rows) continue;
    uint2 low = {values[r].x, values[r].y};
    uint2 high = {values[r].z, values[r].w};
    if constexpr (!std::is_same_v<Element, __nv_bfloat16>) {
      low = pack4<__nv_bfloat16>(unpack4<Element>(low));
      high = pack4<__nv_bfloat16>(unpack4<Element>(high));
    }
    std::uint16_t* const out =
        args.out + row * width + static_cast<std::int64_t>(head) * args.head_dim + lane * 8;
    *reinterpret_cast<uint4*>(out) = {low.x, low.y, high.x, high.y};
  }
}

__global__ void __launch_bounds__(kTableThreads)
    rope_table_kernel(const __grid_constant__ RopeTableArgs args) {
  const std::int64_t index =
      static_cast<std::int64_t>(blockIdx.x) * kTableThreads + static_cast<int>(threadIdx.x);
  if (index >= args.seqlen * args.num_frequencies) return;
  const auto position = static_cast<float>(index / args.num_frequencies);
  const float angle = position * args.inverse_frequencies[index % args.num_frequencies];
  double sine = 0.0, cosine = 0.0;
  sincos(static_cast<double>(angle), &sine, &cosine);
  reinterpret_cast<float2*>(args.rope)[index] = {static_cast<float>(cosine) * args.scale,
                                                 static_cast<float>(sine) * args.scale};
}

// Blocks over rows, where each takes `rows_per_block`.
unsigned row_tiles(std::int64_t rows, std::int64_t rows_per_block) {
  return static_cast<unsigned>((rows + rows_per_block - 1) / rows_per_block);
}

template <class Element, int kHeadDim>
void launch_split(const SplitHeadsArgs& args, CudaStream stream) {
  constexpr int kTileRows = kHeadThreads / head_lanes(kHeadDim) * kRowsPerThread;
  const dim3 grid(row_tiles(args.rows, kTileRows), static_cast<unsigned>(args.layout.num_heads()));
  split_heads_kernel<Element, kHeadDim><<<grid, kHeadThreads, 0, stream>>>(args);
}

template <class Element>
void launch_split(const SplitHeadsArgs& args, CudaStream stream) {
  switch (args.layout.head_dim) {
    case 64:
      return launch_split<Element, 64>(args, stream);
    case 96:
      return launch_split<Element, 96>(args, stream);
    case 128:
      return launch_split<Element, 128>(args, stream);
    case 256:
      return launch_split<Element, 256>(args, stream);
    default:
      throw UnsupportedError("rotary embedding: head_dim is " +
                             std::to_string(args.layout.head_dim) +
                             ", supported are 64, 96, 128 and 256");
  }
}

}  // namespace device

void launch_split_heads(const SplitHeadsArgs& args, KernelDType dtype, CudaStream stream) {
  if (dtype == KernelDType::kBf16) {
    device::launch_split<__nv_bfloat16>(args, stream);
  } else {
    device::launch_split<__half>(args, stream);
  }
  cuda_check(cudaGetLastError(), "launch of the rotary embedding");
}

void launch_join_heads(const JoinHeadsArgs& args, KernelDType dtype, CudaStream stream) {
  const int tile_rows = device::kHeadThreads / (args.head_dim / 8) * device::kRowsPerThread;
  const dim3 grid(device::row_tiles(args.rows, tile_rows), static_cast<unsigned>(args.num_heads));
  const auto kernel = dtype == KernelDType::kBf16 ? device::join_heads_kernel<__nv_bfloat16>
                                                  : device::join_heads_kernel<__half>;
  kernel<<<grid, device::kHeadThreads, 0, stream>>>(args);
  cuda_check(cudaGetLastError(), "launch of joining heads");
}

void launch_rope_table(const RopeTableArgs& args, CudaStream stream) {
  const unsigned blocks =
      device::row_tiles(args.seqlen * args.num_frequencies, device::kTableThreads);
  device::rope_table_kernel<<<blocks, device::kTableThreads, 0, stream>>>(args);
  cuda_check(cudaGetLastError(), "launch of the RoPE table");
}

}  // namespace s2o
