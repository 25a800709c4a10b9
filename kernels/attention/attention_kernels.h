// Launchers of the attention kernels, one per architecture and element type. Host-safe.
//
// Each launches one pass on `stream`, allocates nothing, and throws CudaError when the launch is
// refused. All pointers in `args` are device pointers; `tile` comes from choose_tile.
#pragma once

#include <cstdint>

#include "kernels/attention/kernel_args.h"
#include "kernels/attention/kernel_choice.h"
#include "kernels/attention/maps_sm90.h"
#include "kernels/common/cuda_stream.h"

namespace s2o {

void launch_attention_sm80_bf16(const AttentionKernelArgs& args, int head_dim, TileShape tile,
                                CudaStream stream);
void launch_attention_sm80_fp16(const AttentionKernelArgs& args, int head_dim, TileShape tile,
                                CudaStream stream);

// `maps` describe Q with boxes of tile.tile_m rows, K and V with boxes of tile.tile_n;
// args.next_tile must hold 0.
void launch_attention_sm90_bf16(const AttentionKernelArgs& args, const device::AttentionMaps& maps,
                                int head_dim, TileShape tile, int num_multiprocessors,
                                CudaStream stream);
void launch_attention_sm90_fp16(const AttentionKernelArgs& args, const device::AttentionMaps& maps,
                                int head_dim, TileShape tile, int num_multiprocessors,
                                CudaStream stream);

// What folded columns start from, per whole block of fold_block key slots: arrays of [num_sets,
// num_blocks, head_dim]. A set is a KV head, or a plan head where the pass has a key order.
struct BlockSumsView {
  float* k = nullptr;  // sums
  float* v = nullptr;
  float* k_squared = nullptr;  // only for kBlocksVariance
  // The columns of blocks that a tile did not touch, in the type of q; null for kCentroid.
  std::uint16_t* mean_k = nullptr;
  std::uint16_t* mean_v = nullptr;
  std::uint16_t* variance = nullptr;  // only for kBlocksVariance
  std::int64_t num_blocks = 0;        // seqlen / fold_block
};
// Adds the folded columns of a pass that has run (definition: fold_columns.h): computes `sums`,
// then merges into (resume_out, lse) and writes the outputs. fold_block is at most kMaxFoldBlock.
inline constexpr int kMaxFoldBlock = 1024;
void launch_fold_bf16(const AttentionKernelArgs& args, const BlockSumsView& sums, int num_sets,
                      int head_dim, int tile_m, CudaStream stream);
void launch_fold_fp16(const AttentionKernelArgs& args, const BlockSumsView& sums, int num_sets,
                      int head_dim, int tile_m, CudaStream stream);

}  // namespace s2o
