// A run config, expanded: which inputs and which settings of which methods make up the sweep.
#pragma once

#include <filesystem>
#include <map>
#include <string>
#include <vector>

#include "lib/config/run_config.h"
#include "lib/methods/method.h"
#include "lib/sources/source.h"

namespace s2o {

struct MethodSetting {
  const Method* method = nullptr;
  ParamSet params;
};

// Cell i is input i / settings.size() with setting i % settings.size(): the order of the rows.
struct EvalCells {
  RunConfig config;  // with every parameter of every method written out
  std::vector<InputCell> inputs;
  std::vector<MethodSetting> settings;

  std::size_t size() const { return inputs.size() * settings.size(); }
  const InputCell& input(std::size_t cell) const { return inputs[cell / settings.size()]; }
  const MethodSetting& setting(std::size_t cell) const { return settings[cell % settings.size()]; }
};

// The settings of a config, each once: rows of one setting could not be told apart.
class DistinctSettings {
 public:
  // ConfigError where a setting was there before; `path` is its place in the config.
  void add(const Method& method, const nlohmann::ordered_json& params, const std::string& path);

 private:
  std::map<std::string, std::string> places_;
};

// find_method; its ConfigError begins with `path`.
const Method& find_method_at(const std::string& name, const std::string& path);
// A "methods" entry as given, then the parameters that it leaves out, with their defaults. The
// given ones keep their place because it decides the order of a sweep over several lists.
nlohmann::ordered_json with_defaults(const nlohmann::ordered_json& entry, const Method& method);
// A "methods" entry whose files are found from here: they are relative to the config's folder.
nlohmann::ordered_json with_paths(nlohmann::ordered_json entry, const Method& method,
                                  const std::filesystem::path& base_folder);

// ConfigError for wrong keys and values, InputError for files that are missing or broken.
EvalCells expand_cells(const RunConfig& config);

// "s2o tau=0.01": the method and its knob.
std::string setting_text(const std::string& method, const nlohmann::ordered_json& params);

}  // namespace s2o
