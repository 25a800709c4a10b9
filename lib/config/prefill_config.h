// The config of `s2o prefill`: JSON file, then --set, then typed values. Every default is visible
// here.
//
// Model, prompts, methods and replay stay raw entries at this level; lib/prefill checks their keys.
#pragma once

#include <cstdint>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "lib/config/run_config.h"

namespace s2o {

struct PrefillConfig {
  std::string name;        // default: the file's name without its extension
  std::uint64_t seed = 0;  // of random tokens and of a synthetic replay
  DeviceChoice device;
  std::string kernel = "auto";  // attention kernel: the best of the device, or a variant
  std::string dtype = "bf16";   // storage of Q, K and V
  int parallel = 1;             // GPUs that share the model
  // A model directory, or {"shape": "llama-3.1-8b", "seed": 0}: seeded weights, times only.
  nlohmann::ordered_json model;
  nlohmann::ordered_json prompts;  // >= 1 objects with one of "tokens", "prompts", "random"
  nlohmann::ordered_json methods;  // >= 1 objects with "name"
  std::vector<int> dense_layers;   // layers that stay dense whatever the method
  nlohmann::ordered_json replay;   // what attention reads instead: an input of `s2o eval`, or null
  int logit_positions = 1024;      // rows of a token prompt whose logits are compared
  int check_rows = 0;              // rows of each layer whose attention is computed exactly
  // A prefill takes seconds: fewer repeats than an evaluation. 0 on CUDA: accuracy without times.
  TimingConfig timing = {.warmup = 1, .repeats = 5};

  std::string file;                   // as messages name it
  std::filesystem::path base_folder;  // relative paths of the config start here
};

inline const std::vector<std::string> kPrefillConfigKeys = {
    "$schema", "name",     "seed",      "device",       "kernel", "dtype",
    "model",   "prompts",  "methods",   "dense_layers", "replay", "logit_positions",
    "timing",  "parallel", "check_rows"};
inline constexpr int kMaxParallel = 64;
inline const std::vector<std::string> kModelShapeKeys = {"shape", "seed"};
inline constexpr int kMaxLogitPositions = 4096;
inline constexpr int kMaxCheckRows = 1024;

// Checks the document and fills in the defaults. `file` names it in messages.
PrefillConfig parse_prefill_config(const nlohmann::ordered_json& document,
                                   const std::filesystem::path& file);

// find_config, read, --set for each of `sets` in order, parse_prefill_config.
PrefillConfig load_prefill_config(const std::string& name_or_file,
                                  const std::vector<std::string>& sets);

// The whole config with its defaults, as results carry it.
nlohmann::ordered_json to_json(const PrefillConfig& config);

}  // namespace s2o
