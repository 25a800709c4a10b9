// What one of several GPUs holds of a model: its heads, its columns of the MLP and its part of the
// vocabulary (tensor parallelism as in Shoeybi et al., "Megatron-LM", arXiv 1909.08053, section 3).
// Sums over GPUs follow the output projection and the MLP. Norms, the residual stream and the
// embedding are the same everywhere. Host arithmetic, tested everywhere.
#pragma once

#include <cstdint>

#include "lib/model/weights.h"

namespace s2o {

struct SliceRange {
  std::int64_t first = 0;
  std::int64_t count = 0;
};

struct ModelSlice {
  int index = 0;
  int count = 1;
  SliceRange q_heads;
  SliceRange kv_heads;  // with fewer KV heads than GPUs, several GPUs hold the same one
  SliceRange inner;     // of intermediate_size
  SliceRange vocab;     // rows of the output projection

  bool is_whole() const { return count == 1; }
};

// Part `index` of `count`. UnsupportedError for a model that does not divide: query heads and
// intermediate_size (in multiples of 8) over the GPUs, KV heads over the GPUs or the GPUs over
// them.
ModelSlice slice_model(const ModelConfig& config, int index, int count);

// The shape of a slice: its heads, its intermediate_size, its vocabulary.
ModelConfig slice_config(const ModelConfig& config, const ModelSlice& slice);

// The weights of a slice. Rows are views of the whole; columns (of `o` and `down`) are copies.
// Biases of `o` and `down` are whole: they are added once, after the sum.
LayerWeights slice_layer(const LayerWeights& layer, int head_dim, const ModelSlice& slice);
HostTensor slice_rows(const HostTensor& matrix, const SliceRange& rows);
HostTensor slice_columns(const HostTensor& matrix, const SliceRange& columns);

}  // namespace s2o
