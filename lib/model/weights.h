// The weights of a model directory: names and shapes checked before anything is computed.
#pragma once

#include <filesystem>
#include <memory>
#include <vector>

#include "lib/core/host_tensor.h"
#include "lib/model/linear.h"
#include "lib/model/model_config.h"

namespace s2o {

struct LayerWeights {
  std::vector<float> input_norm;           // [hidden_size]
  std::vector<float> post_attention_norm;  // [hidden_size]
  std::vector<float> q_norm;               // [head_dim], may be empty
  std::vector<float> k_norm;               // [head_dim], may be empty
  Linear q;                                // [num_q_heads * head_dim, hidden_size]
  Linear k;                                // [num_kv_heads * head_dim, hidden_size]
  Linear v;                                // [num_kv_heads * head_dim, hidden_size]
  Linear o;                                // [hidden_size, num_q_heads * head_dim]
  Linear gate;                             // [intermediate_size, hidden_size]
  Linear up;                               // [intermediate_size, hidden_size]
  Linear down;                             // [hidden_size, intermediate_size]
};

// Matrices stay in the dtype and the mapping of their file; only blocks in use are converted.
struct Model {
  ModelConfig config;
  HostTensor embedding;  // [vocab_size, hidden_size]
  std::vector<LayerWeights> layers;
  std::vector<float> final_norm;  // [hidden_size]
  Linear output;                  // [vocab_size, hidden_size]; the embedding when tied
};

// Config and weights of a Hugging Face model directory: model.safetensors, or the shards that
// model.safetensors.index.json names. InputError "<file>: tensor '<name>': ..." for a weight that
// is missing, of the wrong shape or of another dtype than F32, F16, BF16. Tensors that the
// architecture does not use are named in a warning, as transformers does.
std::shared_ptr<const Model> load_model(const std::filesystem::path& folder);

}  // namespace s2o
