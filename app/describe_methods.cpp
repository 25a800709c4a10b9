#include "app/describe_methods.h"

#include <array>
#include <cmath>

#include "lib/config/params.h"
#include "lib/methods/method.h"

namespace s2o {
namespace {

using Json = nlohmann::ordered_json;

Json limit_json(const ParamSpec& spec, double value) {
  if (!std::isfinite(value)) return nullptr;
  return spec.type == ParamType::kInt ? Json(static_cast<std::int64_t>(value)) : Json(value);
}

Json describe_params(const MethodInfo& info) {
  constexpr std::array kTypeNames = {"bool", "int", "real", "choice", "path"};
  const Json defaults = ParamSet(info.params).to_json();
  Json params = Json::array();
  for (const ParamSpec& spec : info.params) {
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

nlohmann::ordered_json describe_method(const Method& method) {
  const MethodInfo& info = method.info();
  return {{"name", info.name},
          {"knob", info.knob},
          {"summary", info.summary},
          {"title", info.title},
          {"source", info.source},
          {"is_oracle", info.is_oracle},
          {"knob_sweep", info.knob_sweep},
          {"params", describe_params(info)}};
}

nlohmann::ordered_json describe_methods() {
  Json items = Json::array();
  for (const Method* method : all_methods()) items.push_back(describe_method(*method));
  return items;
}

}  // namespace s2o
