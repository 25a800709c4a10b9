// Fills placed weights on the device. CUDA builds only.
#pragma once

#include <cstdint>

#include "kernels/common/cuda_stream.h"
#include "lib/model/weights.h"
#include "lib/prefill/weight_layout.h"

namespace s2o {

// Streams the mapped files through two pinned buffers of some megabytes; fp32 and fp16 weights are
// rounded to bf16 on the device. Waits until all is there.
void upload_weights(const Model& model, const ModelSlice& slice, const PlacedWeights& target,
                    CudaStream stream);

// Normal matrices of deviation 0.02, as models are initialised; norms of ones, biases of zeros.
// The same seed gives the same model on every device, however it is sliced.
void make_random_weights(std::uint64_t seed, const ModelConfig& config, const ModelSlice& slice,
                         const PlacedWeights& target, CudaStream stream);

}  // namespace s2o
