// The Hopper kernel over quantised input (quantise.h), seen from the host. Host-safe.
#pragma once

#include "kernels/attention/kernel_args.h"
#include "kernels/attention/kernel_choice.h"
#include "kernels/attention/maps_sm90.h"
#include "kernels/common/cuda_stream.h"
#include "kernels/common/dtype.h"

namespace s2o {

// q and k are 8-bit integers, v is transposed in e4m3 or rows in fp16 (quantised_input.h).
struct QuantisedKernelArgs : AttentionKernelArgs {
  const float* logit_scale = nullptr;  // [num_q_heads, seqlen]: logit in base 2 per unit of q k
  const float* lse_shift = nullptr;    // [num_q_heads, seqlen]: what smoothing took off the lse
  const float* value_scale = nullptr;  // [num_kv_heads]
};

// As choose_tile, over quantised input, which the sm90 kernel alone takes.
TileShape choose_quantised_tile(AttentionKernel kernel, const Problem& problem,
                                const PlanView& plan);

// head_dim 128, tile_n 128; `maps` as PreparedAttention makes them. 16-bit output is of type
// `output`. Values in e4m3, for passes without gathers, key order and early stop, or in fp16.
void launch_attention_sm90_quantised(const QuantisedKernelArgs& args,
                                     const device::AttentionMaps& maps, KernelDType output,
                                     TileShape tile, int num_multiprocessors, CudaStream stream);
void launch_attention_sm90_wide_values(const QuantisedKernelArgs& args,
                                       const device::AttentionMaps& maps, KernelDType output,
                                       TileShape tile, int num_multiprocessors, CudaStream stream);

}  // namespace s2o
