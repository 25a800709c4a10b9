// Where the weights of a model lie in one block of device memory: matrices in bf16 and fused as the
// forward pass multiplies by them, vectors in fp32.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "lib/model/model_config.h"
#include "lib/prefill/model_slice.h"

namespace s2o {

// Device pointers; [out_features, in_features] in bf16, [out_features] in fp32.
struct PlacedLinear {
  std::uint16_t* weight = nullptr;
  float* bias = nullptr;  // may be null
  std::int64_t out_features = 0;
  std::int64_t in_features = 0;
};

struct PlacedLayer {
  float* input_norm = nullptr;           // [hidden_size]
  float* post_attention_norm = nullptr;  // [hidden_size]
  float* q_norm = nullptr;               // [head_dim], may be null
  float* k_norm = nullptr;               // [head_dim], may be null
  PlacedLinear qkv;                      // query, then key, then value features
  PlacedLinear o;
  PlacedLinear gate_up;  // gate, then up features
  PlacedLinear down;
};

struct PlacedWeights {
  std::uint16_t* embedding = nullptr;  // [vocab_size, hidden_size]
  std::vector<PlacedLayer> layers;
  float* final_norm = nullptr;  // [hidden_size]
  PlacedLinear output;          // its weight are rows of the embedding when tied
  bool is_tied = false;
  std::int64_t bytes = 0;  // of the block
};

// Every array starts at a multiple of 256 bytes. With a null `base` only `bytes` means something.
PlacedWeights place_weights(const ModelConfig& config, std::byte* base);
// Of a slice of the model `config`. The embedding is whole.
PlacedWeights place_weights(const ModelConfig& config, const ModelSlice& slice, std::byte* base);

}  // namespace s2o
