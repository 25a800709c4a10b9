#include "lib/sources/source.h"

#include <fmt/format.h>

#include <array>

#include "lib/config/json_reader.h"
#include "lib/core/error.h"
#include "lib/core/text.h"

namespace s2o {
namespace {

struct Source {
  const char* name;
  std::vector<InputCell> (*expand)(const nlohmann::ordered_json&, const std::string&,
                                   const SourceOptions&);
};
constexpr std::array kSources = {Source{"weights", expand_weights_source},
                                 Source{"dump", expand_dump_source},
                                 Source{"synthetic", expand_synthetic_source}};

}  // namespace

std::vector<InputCell> expand_source(const nlohmann::ordered_json& entry, const std::string& path,
                                     const SourceOptions& options) {
  if (!entry.is_object()) throw_wrong_json(entry, path, "an object");
  std::vector<std::string> names;
  for (const Source& source : kSources) names.emplace_back(source.name);
  // Which keys are known depends on the source, so a misspelt "source" is a missing one.
  if (!entry.contains("source")) {
    throw ConfigError(fmt::format("{}: key 'source' is missing, expected \"source\": one of {}",
                                  path, join(names)));
  }
  const nlohmann::ordered_json& value = entry["source"];
  const std::string place = json_member_path(path, "source");
  if (!value.is_string()) throw_wrong_json(value, place, "a string");
  const auto name = value.get<std::string>();
  for (const Source& source : kSources) {
    if (name == source.name) return source.expand(entry, path, options);
  }
  throw ConfigError(fmt::format("{}: unknown source '{}'{}; expected one of: {}", place, name,
                                did_you_mean(name, names), join(names)));
}

}  // namespace s2o
