// Model configurations for tests and benchmarks of prefill. Header-only.
#pragma once

#include <string>

#include "lib/model/model_shapes.h"

namespace s2o::testing {

// Llama-3.1-8B.
inline ModelConfig llama_8b_config() { return model_shape("llama-3.1-8b", "shape"); }

// A few million parameters of an architecture, of sizes that are no powers of two.
inline ModelConfig small_config(const std::string& architecture, int num_layers) {
  ModelConfig config = llama_8b_config();
  config.name = "small";
  config.architecture = architecture;
  config.num_layers = num_layers;
  config.hidden_size = 200;
  config.intermediate_size = 328;
  config.num_q_heads = 6;
  config.num_kv_heads = 2;
  config.head_dim = 64;
  config.vocab_size = 509;
  config.rope.original_max_position_embeddings = 64;
  if (architecture == "Qwen3ForCausalLM") {
    config.qk_norm = true;
    config.head_dim = 128;
    config.rope = {.theta = 1000000.0f};
  }
  if (architecture == "Qwen2ForCausalLM") {  // the heads and the rope of Qwen2.5-1.5B with YaRN
    config.qkv_bias = true;
    config.num_q_heads = 12;
    config.head_dim = 128;
    config.rope = {.type = RopeType::kYarn,
                   .theta = 1000000.0f,
                   .factor = 4.0f,
                   .original_max_position_embeddings = 256,
                   .attention_factor = 1.1386294f};
  }
  return config;
}

}  // namespace s2o::testing
