// Which rotary embedding a config.json asks for, and its frequencies.
//
// Source: modeling_rope_utils.py of transformers 5 (types "default", "linear", "dynamic", "yarn"
// and "llama3"). YaRN: arXiv 2309.00071.
#pragma once

#include <cstdint>
#include <vector>

#include "lib/model/config_fields.h"

namespace s2o {

enum class RopeType { kDefault, kLinear, kDynamic, kYarn, kLlama3 };

const char* rope_type_name(RopeType type);  // "yarn"

struct RopeConfig {
  RopeType type = RopeType::kDefault;
  float theta = 10000.0f;
  float factor = 1.0f;  // of the context length; all types but kDefault
  // kYarn and kLlama3: tokens the model was trained for before scaling. kDynamic: up to here theta
  // stays (max_position_embeddings).
  std::int64_t original_max_position_embeddings = 0;
  float low_freq_factor = 1.0f;   // kLlama3
  float high_freq_factor = 4.0f;  // kLlama3
  float beta_fast = 32.0f;        // kYarn: rotations over the original context above which kept,
  float beta_slow = 1.0f;         // and below which divided by factor
  bool truncate = true;           // kYarn: the two borders are rounded to whole pairs
  float attention_factor = 1.0f;  // kYarn: multiplies cosines and sines
};

// From `rope_scaling` and `rope_theta` (configs up to transformers 4) or `rope_parameters`
// (transformers 5). `max_positions` is max_position_embeddings, 0 when the config does not say.
// InputError for what is malformed, misses its type or contradicts itself, UnsupportedError for
// another type. What is ignored or taken by default is a warning that gives the value used.
RopeConfig read_rope_config(const ConfigFields& root, std::int64_t max_positions);

struct RopeFrequencies {
  std::vector<float> inverse;  // angle per position of each rotary pair, radians: [head_dim / 2]
  float scale = 1.0f;          // of cosines and sines
};

// Computed in fp32 in the order of transformers. Only kDynamic depends on `seqlen`, the length of
// the whole prompt (each prompt as the first one of a fresh model of transformers, which keeps the
// frequencies of the longest prompt so far).
RopeFrequencies rope_frequencies(const RopeConfig& rope, int head_dim, std::int64_t seqlen);

}  // namespace s2o
