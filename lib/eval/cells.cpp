#include "lib/eval/cells.h"

#include <fmt/format.h>

#include <map>
#include <tuple>

#include "lib/config/json_reader.h"
#include "lib/core/error.h"

namespace s2o {
namespace {

// Gives inputs of one name longer ones; what cannot be told apart even so is there twice.
void name_inputs(std::vector<InputCell>& inputs, const std::vector<std::string>& places) {
  std::vector<NamedInput> named;
  for (InputCell& input : inputs) {
    named.push_back({&input.name, input.layer, input.seqlen, &input.identity});
  }
  tell_names_apart(named);
  std::map<std::tuple<std::string, int, std::int64_t>, std::size_t> first;
  for (std::size_t i = 0; i < inputs.size(); ++i) {
    const InputCell& input = inputs[i];
    const auto [found, is_new] = first.try_emplace({input.name, input.layer, input.seqlen}, i);
    if (is_new) continue;
    throw ConfigError(
        fmt::format("{}: '{}' layer {}, seqlen {} is the same input as one of {}; remove it, or "
                    "give it another "
                    "\"name\"",
                    places[i], input.name, input.layer, input.seqlen, places[found->second]));
  }
}

}  // namespace

const Method& find_method_at(const std::string& name, const std::string& path) {
  try {
    return find_method(name);
  } catch (const ConfigError& error) {
    throw ConfigError(fmt::format("{}: {}", path, error.what()));
  }
}

nlohmann::ordered_json with_defaults(const nlohmann::ordered_json& entry, const Method& method) {
  nlohmann::ordered_json complete = entry;
  const nlohmann::ordered_json defaults = ParamSet(method.info().params).to_json();
  for (const auto& [name, value] : defaults.items()) {
    if (!complete.contains(name)) complete[name] = value;
  }
  return complete;
}

nlohmann::ordered_json with_paths(nlohmann::ordered_json entry, const Method& method,
                                  const std::filesystem::path& base_folder) {
  const auto place = [&base_folder](nlohmann::ordered_json& value) {
    if (!value.is_string() || value.get<std::string>().empty()) return;
    value = (base_folder / value.get<std::string>()).lexically_normal().string();
  };
  for (const ParamSpec& spec : method.info().params) {
    if (spec.type != ParamType::kPath || !entry.contains(spec.name)) continue;
    nlohmann::ordered_json& value = entry[spec.name];
    if (value.is_array()) {
      for (nlohmann::ordered_json& one : value) place(one);
    } else {
      place(value);
    }
  }
  return entry;
}

void DistinctSettings::add(const Method& method, const nlohmann::ordered_json& params,
                           const std::string& path) {
  const std::string& name = method.info().name;
  const auto [found, is_new] = places_.try_emplace(name + params.dump(), path);
  if (is_new) return;
  const std::string& first = found->second;
  throw ConfigError(fmt::format("{}: {} occurs twice{}, expected each setting once", path,
                                setting_text(name, params),
                                first == path ? "" : fmt::format(", first in {}", first)));
}

EvalCells expand_cells(const RunConfig& config) {
  EvalCells cells;
  cells.config = config;
  DistinctSettings distinct;
  for (std::size_t i = 0; i < config.methods.size(); ++i) {
    const std::string path = method_path(config, i);
    const Method& method = find_method_at(config.methods[i]["name"].get<std::string>(), path);
    const nlohmann::ordered_json entry = with_paths(config.methods[i], method, config.base_folder);
    for (ParamSet& params : expand_settings(method, entry, path)) {
      distinct.add(method, params.to_json(), path);
      cells.settings.push_back({.method = &method, .params = std::move(params)});
    }
    cells.config.methods[i] = with_defaults(entry, method);
  }
  const SourceOptions options = {
      .base_folder = config.base_folder,
      .dtype = parse_storage_dtype(config.dtype, config.file + ": dtype"),
      .seed = config.seed,
      .allow_nonfinite = config.allow_nonfinite};
  std::vector<std::string> places;  // of the inputs, in the config
  for (std::size_t i = 0; i < config.inputs.size(); ++i) {
    const std::string path = fmt::format("{}: inputs[{}]", config.file, i);
    for (InputCell& cell : expand_source(config.inputs[i], path, options)) {
      cells.inputs.push_back(std::move(cell));
      places.push_back(path);
    }
  }
  name_inputs(cells.inputs, places);
  if (cells.inputs.empty()) {
    throw ConfigError(fmt::format("{}: inputs: no layer and no sequence is left", config.file));
  }
  return cells;
}

std::string setting_text(const std::string& method, const nlohmann::ordered_json& params) {
  for (const Method* known : all_methods()) {
    if (known->info().name != method) continue;
    const std::string& knob = known->info().knob;
    if (!knob.empty() && params.contains(knob)) {
      return fmt::format("{} {}={}", method, knob, params[knob].dump());
    }
  }
  return method;
}

}  // namespace s2o
