#include "lib/prefill/cells.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <utility>

#include "lib/config/config_parts.h"
#include "lib/core/error.h"
#include "lib/core/text.h"
#include "lib/eval/cells.h"
#include "lib/methods/setting.h"
#include "lib/methods/tuned/tuned_file.h"
#include "lib/model/model_shapes.h"
#include "lib/sources/source.h"

namespace s2o {
namespace {

using Json = nlohmann::ordered_json;

constexpr const char* kLayersKey = "layers";

// ---- model and replay ----

void read_model(const PrefillConfig& config, PrefillCells& cells) {
  const std::string path = config.file + ": model";
  if (config.model.is_string()) {
    cells.model.weights = load_model(config.base_folder / config.model.get<std::string>());
    cells.model.config = cells.model.weights->config;
    cells.model_label = cells.model.config.name;
    return;
  }
  const JsonReader reader(config.model, path, kModelShapeKeys);
  cells.model.config = model_shape(reader.get_string("shape"), reader.path_of("shape"));
  cells.model.seed = static_cast<std::uint64_t>(reader.get_int("seed", 0, 0));
  cells.model_label = cells.model.config.name + " (seeded weights)";
}

void read_replay(const PrefillConfig& config, PrefillCells& cells) {
  cells.qkv_label = "model";
  if (config.replay.is_null()) return;
  const std::string path = config.file + ": replay";
  const SourceOptions options = {
      .base_folder = config.base_folder, .dtype = cells.model.dtype, .seed = config.seed};
  std::string ids;
  for (const InputCell& cell : expand_source(config.replay, path, options)) {
    ids += fmt::format("{} {} {}\n", cell.identity.id(), cell.layer, cell.seqlen);
    if (cell.seqlen > 0 && cell.seqlen < cells.longest_prompt()) {
      throw ConfigError(fmt::format("{}: {} tokens, expected at least {} (the longest prompt)",
                                    path, cell.seqlen, cells.longest_prompt()));
    }
    cells.model.replay.push_back(cell.load());
    const AttentionInput& input = cells.model.replay.back();
    if (input.problem.seqlen < cells.longest_prompt()) {
      throw InputError(
          fmt::format("{}: {} layer {}: {} tokens, expected at least {} (the longest "
                      "prompt)",
                      path, input.name, input.layer, input.problem.seqlen, cells.longest_prompt()));
    }
  }
  cells.qkv_label = "replay of " + cells.model.replay.front().name;
  for (Prompt& prompt : cells.prompts) prompt.identity.facts["replay_id"] = hash_hex(ids);
}

// The model is part of what a prompt's numbers depend on.
void identify_model(const PrefillConfig& config, PrefillCells& cells) {
  InputIdentity model;
  if (config.model.is_string()) {
    const auto folder = config.model.get<std::string>();
    model.origin["model"] = folder;
    add_file_identity(model, "model_", file_identity(config.base_folder / folder));
  } else {
    model.facts["model_shape"] = cells.model.config.name;
    model.facts["model_seed"] = cells.model.seed;
  }
  model.facts["dtype"] = config.dtype;
  model.facts["logit_positions"] = config.logit_positions;
  for (Prompt& prompt : cells.prompts) {
    prompt.identity.facts.update(model.facts);
    prompt.identity.origin.update(model.origin);
  }
}

// ---- methods ----

struct LayerRange {
  int first = 0;
  int last = 0;  // inclusive
};

// "3" or "4-7".
LayerRange parse_layers(const std::string& text, int num_layers, const std::string& path) {
  LayerRange range;
  const char* end = text.data() + text.size();
  auto parsed = std::from_chars(text.data(), end, range.first);
  range.last = range.first;
  if (parsed.ec == std::errc() && parsed.ptr != end && *parsed.ptr == '-') {
    parsed = std::from_chars(parsed.ptr + 1, end, range.last);
  }
  const bool whole = parsed.ec == std::errc() && parsed.ptr == end && !text.empty();
  if (whole && range.first >= 0 && range.first <= range.last && range.last < num_layers) {
    return range;
  }
  throw ConfigError(fmt::format(
      "{}: found '{}', expected a layer in [0, {}) (the model's), or a range such as \"4-7\"", path,
      text, num_layers));
}

// Settings of the methods of a config, with the layers that do something else.
class SettingExpander {
 public:
  SettingExpander(const PrefillConfig& config, const ModelConfig& model)
      : config_(config), model_(model), num_layers_(model.num_layers) {
    for (const int layer : config.dense_layers) {
      if (layer < num_layers_) continue;
      throw ConfigError(
          fmt::format("{}: dense_layers: found {}, expected layers in [0, {}) (the "
                      "model's)",
                      config.file, layer, num_layers_));
    }
  }

  PrefillSetting make(const Method& method, ParamSet params) const {
    PrefillSetting setting{.method = &method, .params = std::move(params)};
    setting.layer_methods.assign(static_cast<std::size_t>(num_layers_), &method);
    setting.layer_params.assign(static_cast<std::size_t>(num_layers_),
                                std::make_shared<const ParamSet>(setting.params));
    setting.row_params = method.row_params(setting.params);
    return setting;
  }

  // Appends all settings of one entry, and writes its parameters out in `resolved`.
  void expand(std::size_t index, std::vector<PrefillSetting>& settings, Json& resolved) {
    Json entry = config_.methods[index];
    const std::string path = method_path(config_.file, config_.methods, index);
    const Method& method = find_method_at(entry["name"].get<std::string>(), path);
    const Json layers = entry.contains(kLayersKey) ? entry[kLayersKey] : Json::object();
    const std::string layers_path = json_member_path(path, kLayersKey);
    if (!layers.is_object()) throw_wrong_json(layers, layers_path, "an object by layer");
    entry.erase(kLayersKey);
    entry = with_paths(std::move(entry), method, config_.base_folder);
    for (ParamSet& params : expand_settings(method, entry, path)) {
      check_tuned(method, params, path);
      PrefillSetting setting = make(method, std::move(params));
      keep_dense(setting);
      for (const auto& [text, change] : layers.items()) {
        change_layers(setting, text, change, json_member_path(layers_path, text));
      }
      if (!layers.empty()) setting.row_params[kLayersKey] = layers;
      distinct_.add(method, setting.row_params, path);
      settings.push_back(std::move(setting));
    }
    resolved = with_defaults(entry, method);
    if (!layers.empty()) resolved[kLayersKey] = layers;
  }

 private:
  // Settings of one model mean nothing to another of the same shape.
  void check_tuned(const Method& method, const ParamSet& params, const std::string& path) const {
    if (&method != &find_method("tuned")) return;
    const std::string& file = params.get_path("path");
    const TunedModel& tuned = load_tuned_file(file)->model;
    if (!config_.model.is_string()) {  // seeded weights: times of a shape
      if (tuned.num_layers == num_layers_ && tuned.num_q_heads == model_.num_q_heads &&
          tuned.num_kv_heads == model_.num_kv_heads && tuned.head_dim == model_.head_dim) {
        return;
      }
      throw ConfigError(fmt::format(
          "{}.path: {} is for {} layers of {} query and {} KV heads of {}, the model has {} of {} "
          "and {} of {}",
          path, file, tuned.num_layers, tuned.num_q_heads, tuned.num_kv_heads, tuned.head_dim,
          num_layers_, model_.num_q_heads, model_.num_kv_heads, model_.head_dim));
    }
    const std::string id = weights_id(config_.base_folder / config_.model.get<std::string>());
    if (tuned.id == id) return;
    throw ConfigError(fmt::format("{}.path: {} is for weights {} ({}), the model has {}", path,
                                  file, tuned.id, tuned.name, id));
  }

  void keep_dense(PrefillSetting& setting) const {
    const Method& dense = find_method("dense");
    if (config_.dense_layers.empty() || setting.method == &dense) return;
    const auto params = std::make_shared<const ParamSet>(dense.info().params);
    for (const int layer : config_.dense_layers) {
      setting.layer_methods[static_cast<std::size_t>(layer)] = &dense;
      setting.layer_params[static_cast<std::size_t>(layer)] = params;
    }
    setting.row_params["dense_layers"] = config_.dense_layers;
  }

  void change_layers(PrefillSetting& setting, const std::string& text, const Json& change,
                     const std::string& path) const {
    const LayerRange range = parse_layers(text, num_layers_, path);
    if (!change.is_object()) throw_wrong_json(change, path, "an object of parameters");
    const JsonReader reader(change, path, keys_of(change));
    const std::string name = reader.get_string("name", setting.method->info().name);
    const Method& method = find_method_at(name, path);
    const std::vector<ParamSpec> specs = setting_specs(method.info());
    ParamSet params = &method == setting.method ? setting.params : ParamSet(specs);
    for (const auto& [key, value] : change.items()) {
      if (key != "name") params.set(specs, key, value, path);
    }
    check_settings(method, params, path);
    const auto shared = std::make_shared<const ParamSet>(std::move(params));
    for (int layer = range.first; layer <= range.last; ++layer) {
      const auto& dense = config_.dense_layers;
      if (std::find(dense.begin(), dense.end(), layer) != dense.end()) {
        throw ConfigError(fmt::format("{}: layer {} is one of dense_layers too", path, layer));
      }
      setting.layer_methods[static_cast<std::size_t>(layer)] = &method;
      setting.layer_params[static_cast<std::size_t>(layer)] = shared;
    }
  }

  // The parameters are checked one by one against the method, which the name decides.
  static std::vector<std::string> keys_of(const Json& object) {
    std::vector<std::string> keys;
    for (const auto& [key, value] : object.items()) keys.push_back(key);
    return keys;
  }

  const PrefillConfig& config_;
  const ModelConfig& model_;
  int num_layers_;
  DistinctSettings distinct_;
};

}  // namespace

std::vector<LayerMethod> PrefillSetting::layers() const {
  std::vector<LayerMethod> layers;
  for (std::size_t i = 0; i < layer_methods.size(); ++i) {
    layers.push_back({.method = layer_methods[i], .params = layer_params[i].get()});
  }
  return layers;
}

bool PrefillSetting::is_dense() const {
  const Method& dense = find_method("dense");
  return std::ranges::all_of(layers(), [&dense](const LayerMethod& layer) {
    return layer.method == &dense && !quantise_rule(*layer.params);
  });
}

bool PrefillSetting::has_oracle() const {
  return std::any_of(layer_methods.begin(), layer_methods.end(),
                     [](const Method* layer) { return layer->info().is_oracle; });
}

std::int64_t PrefillCells::longest_prompt() const {
  std::int64_t longest = 0;
  for (const Prompt& known : prompts) longest = std::max(longest, known.seqlen());
  return longest;
}

PrefillModel PrefillCells::take_model() {
  PrefillModel taken = std::move(model);
  model = {
      .config = taken.config, .weights = taken.weights, .seed = taken.seed, .dtype = taken.dtype};
  return taken;
}

PrefillCells expand_prefill_cells(const PrefillConfig& config) {
  PrefillCells cells;
  cells.config = config;
  cells.model.dtype = parse_storage_dtype(config.dtype, config.file + ": dtype");
  // Cheap checks first: prompts and replays may be gigabytes.
  read_model(config, cells);
  SettingExpander expander(config, cells.model.config);
  for (std::size_t i = 0; i < config.methods.size(); ++i) {
    expander.expand(i, cells.settings, cells.config.methods[i]);
  }
  const Method& dense = find_method("dense");
  cells.dense = expander.make(dense, ParamSet(dense.info().params));
  cells.prompts = expand_prompts(config, cells.model.config.vocab_size);
  identify_model(config, cells);
  read_replay(config, cells);
  cells.measures_accuracy = cells.model.weights != nullptr && cells.model.replay.empty();
  return cells;
}

}  // namespace s2o
