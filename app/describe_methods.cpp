#include "app/describe_methods.h"

#include <array>
#include <cmath>
#include <vector>

#include "lib/config/params.h"
#include "lib/methods/setting.h"

namespace s2o {
namespace {

using Json = nlohmann::ordered_json;

Json limit_json(const ParamSpec& spec, double value) {
  if (!std::isfinite(value)) return nullptr;
  return spec.type == ParamType::kInt ? Json(static_cast<std::int64_t>(value)) : Json(value);
}

Json describe_params(std::vector<ParamSpec> specs) {
  constexpr std::array kTypeNames = {"bool", "int", "real", "choice", "path"};
  for (ParamSpec& spec : specs) spec.is_implied = false;  // a default to be shown
  const Json defaults = ParamSet(specs).to_json();
  Json params = Json::array();
  for (const ParamSpec& spec : specs) {
    params.push_back({{"name", spec.name},
                      {"type", kTypeNames[static_cast<std::size_t>(spec.type)]},
                      {"default", defaults[spec.name]},
                      {"min", limit_json(spec, spec.min)},
                      {"max", limit_json(spec, spec.max)},
                      {"choices", spec.allowed.empty() ? Json(spec.choices) : Json(spec.allowed)},
                      {"help", spec.help}});
  }
  return params;
}

}  // namespace

nlohmann::ordered_json describe_method(const Method& method, bool of_configs) {
  const MethodInfo& info = method.info();
  return {{"name", info.name},
          {"knob", info.knob},
          {"summary", info.summary},
          {"title", info.title},
          {"source", info.source},
          {"is_oracle", info.is_oracle},
          {"knob_sweep", info.knob_sweep},
          {"params", describe_params(of_configs ? setting_specs(info) : info.params)}};
}

nlohmann::ordered_json describe_methods(bool of_configs) {
  Json items = Json::array();
  for (const Method* method : all_methods()) items.push_back(describe_method(*method, of_configs));
  return items;
}

}  // namespace s2o
