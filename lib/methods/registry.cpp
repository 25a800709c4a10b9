#include <fmt/format.h>

#include <algorithm>

#include "lib/core/error.h"
#include "lib/core/text.h"
#include "lib/methods/method.h"

namespace s2o {

#define S2O_METHOD(name) const Method& method_##name();
#include "lib/methods/methods.def"
#undef S2O_METHOD
const Method& method_tuned();

const std::vector<const Method*>& all_methods() {
  static const std::vector<const Method*> methods = {
#define S2O_METHOD(name) &method_##name(),
#include "lib/methods/methods.def"
#undef S2O_METHOD
  };
  return methods;
}

const Method& find_method(const std::string& name) {
  if (name == method_tuned().info().name) return method_tuned();
  std::vector<std::string> names = {method_tuned().info().name};
  for (const Method* method : all_methods()) {
    if (method->info().name == name) return *method;
    names.push_back(method->info().name);
  }
  const std::string nearest = nearest_name(name, names);
  throw ConfigError(fmt::format("unknown method '{}'{}; methods: {}", name,
                                nearest.empty() ? "" : fmt::format(", did you mean '{}'?", nearest),
                                join(names)));
}

const ParamSet& HeadSetting::params_of(int q_head) const {
  return head_params.empty() ? *params
                             : head_params.at(static_cast<std::size_t>(q_head - q_heads.first));
}

bool same_params(std::span<const ParamSet> a, std::span<const ParamSet> b) {
  return std::ranges::equal(
      a, b, [](const ParamSet& x, const ParamSet& y) { return x.to_json() == y.to_json(); });
}

std::vector<ParamSet> expand_settings(const Method& method, const nlohmann::ordered_json& entry,
                                      const std::string& path) {
  std::vector<ParamSet> settings = expand_params(method.info().params, entry, "name", path);
  for (const ParamSet& params : settings) check_settings(method, params, path);
  return settings;
}

void check_settings(const Method& method, const ParamSet& params, const std::string& path) {
  try {
    method.check(params);
  } catch (const ConfigError& error) {
    throw ConfigError(fmt::format("{}.{}", path, error.what()));
  }
}

}  // namespace s2o
