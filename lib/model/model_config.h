// config.json of a Hugging Face model directory: what the forward pass needs, checked.
//
// Architectures: LlamaForCausalLM, Qwen3ForCausalLM. Where a field may be absent, its value is the
// default of transformers for that architecture.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

namespace s2o {

enum class RopeType { kDefault, kLlama3 };

struct RopeConfig {
  RopeType type = RopeType::kDefault;
  float theta = 10000.0f;
  // kLlama3 only.
  float factor = 1.0f;
  float low_freq_factor = 1.0f;
  float high_freq_factor = 4.0f;
  std::int64_t original_max_position_embeddings = 0;  // tokens
};

struct ModelConfig {
  std::filesystem::path folder;
  std::string name;  // last part of the folder, "tiny-llama"
  std::string architecture;
  int num_layers = 0;
  int hidden_size = 0;
  int intermediate_size = 0;
  int num_q_heads = 0;
  int num_kv_heads = 0;
  int head_dim = 0;
  int vocab_size = 0;
  std::int64_t max_position_embeddings = 0;  // tokens; 0 when the config does not say
  float rms_norm_eps = 1e-6f;
  bool tie_word_embeddings = false;  // the output projection is the embedding table
  bool attention_bias = false;       // q, k, v and o projections have a bias
  bool mlp_bias = false;             // gate, up and down projections have a bias
  bool qk_norm = false;              // RMSNorm of every q and k head before RoPE
  RopeConfig rope;
};

// Reads folder/config.json. InputError for a folder or field that is missing or malformed;
// UnsupportedError for what is well-formed but not implemented: another architecture, rope type or
// activation, quantised weights, sliding-window attention.
ModelConfig read_model_config(const std::filesystem::path& folder);

// Angle per position of each rotary pair, in radians: [head_dim / 2]. Computed in fp32 in the order
// of transformers (modeling_rope_utils.py), llama3 scaling included.
std::vector<float> rope_inverse_frequencies(const ModelConfig& config);

}  // namespace s2o
