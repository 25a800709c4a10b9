// config.json of a Hugging Face model directory: what the forward pass needs, checked.
//
// Architectures: LlamaForCausalLM, MistralForCausalLM, Qwen2ForCausalLM, Qwen3ForCausalLM. Where a
// field may be absent, its value is the default of transformers 5 for that architecture.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>

#include "lib/model/rope_config.h"

namespace s2o {

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
  bool qkv_bias = false;             // q, k and v projections have a bias
  bool output_bias = false;          // the o projection has a bias
  bool mlp_bias = false;             // gate, up and down projections have a bias
  bool qk_norm = false;              // RMSNorm of every q and k head before RoPE
  std::int64_t sliding_window = 0;   // tokens, of at least one layer; 0: none
  RopeConfig rope;
};

// Reads folder/config.json. InputError for a folder or field that is missing or malformed;
// UnsupportedError for what is well-formed but not implemented: another architecture, rope type or
// activation, quantised weights. A sliding window that transformers would not use is none.
ModelConfig read_model_config(const std::filesystem::path& folder);

// UnsupportedError when a sliding window would cut a prompt of `seqlen` tokens; a warning beyond
// the length that the model was made for. `name` says which prompt.
void check_prompt_length(const ModelConfig& config, std::int64_t seqlen, const std::string& name);

}  // namespace s2o
