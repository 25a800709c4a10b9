// A prefill config, expanded: the model, the prompts and the settings of methods.
#pragma once

#include <cstddef>
#include <memory>
#include <string>
#include <vector>

#include "lib/config/prefill_config.h"
#include "lib/methods/method.h"
#include "lib/prefill/prefill_backend.h"
#include "lib/prefill/prompts.h"

namespace s2o {

// A method with one choice of its parameters, and what single layers do instead.
struct PrefillSetting {
  const Method* method = nullptr;
  ParamSet params;
  // [num_layers]; the parameters of layer i are own_params[i], which may be those of `params`.
  std::vector<const Method*> layer_methods;
  std::vector<std::shared_ptr<const ParamSet>> layer_params;
  // `params`, and "dense_layers" and "layers" where they are not empty.
  nlohmann::ordered_json row_params;

  std::vector<LayerMethod> layers() const;
  bool is_dense() const;    // in every layer, of the stored numbers: the reference
  bool has_oracle() const;  // in some layer
};

// Cell i is prompt i / settings.size() with setting i % settings.size(): the order of the rows.
struct PrefillCells {
  PrefillConfig config;  // with every parameter of every method written out
  PrefillModel model;
  std::string model_label;  // "tiny-llama", "llama-3.1-8b (seeded weights)"
  std::string qkv_label;    // "model", or "replay of <input>"
  // With the model's own weights and Q, K, V; else logits and losses mean nothing.
  bool measures_accuracy = false;
  std::vector<Prompt> prompts;
  std::vector<PrefillSetting> settings;
  PrefillSetting dense;  // the reference of every prompt

  std::size_t size() const { return prompts.size() * settings.size(); }
  const Prompt& prompt(std::size_t cell) const { return prompts[cell / settings.size()]; }
  const PrefillSetting& setting(std::size_t cell) const { return settings[cell % settings.size()]; }
  std::int64_t longest_prompt() const;
  // The model for a backend; the replay, which may be gigabytes, goes with it.
  PrefillModel take_model();
};

// Reads the model, the prompts and the replay. ConfigError for wrong keys and values, InputError
// for files that are missing or broken, UnsupportedError for another architecture.
PrefillCells expand_prefill_cells(const PrefillConfig& config);

}  // namespace s2o
