// Instances of the Hopper kernel over quantised input.
#pragma once

#include "kernels/attention/attention_quantised.h"
#include "kernels/attention/launch_sm90.cuh"

namespace s2o::device {

template <class Out, bool kWide, int kTileM>
void launch_quantised_tile(const QuantisedKernelArgs& args, const AttentionMaps& maps,
                           int num_multiprocessors, CudaStream stream) {
  with_decision_sm90(args, [&]<StepDecision kDecision>() {
    // An early stop has wide values (has_wide_values).
    if constexpr (kWide || kDecision != StepDecision::kEarlyStop) {
      launch_instance_sm90<QuantisedTraits<Out, kWide, kTileM, kDecision>>(
          args, maps, num_multiprocessors, stream);
    }
  });
}

template <bool kWide>
void launch_quantised(const QuantisedKernelArgs& args, const AttentionMaps& maps,
                      KernelDType output, TileShape tile, int num_multiprocessors,
                      CudaStream stream) {
  if (args.num_tiles == 0) return;
  const bool bf16 = output == KernelDType::kBf16;
  const bool tall = tile.tile_m == 128;
  (bf16   ? tall ? launch_quantised_tile<Bf16, kWide, 128> : launch_quantised_tile<Bf16, kWide, 64>
     : tall ? launch_quantised_tile<Fp16, kWide, 128>
          : launch_quantised_tile<Fp16, kWide, 64>)(args, maps, num_multiprocessors, stream);
}

}  // namespace s2o::device
