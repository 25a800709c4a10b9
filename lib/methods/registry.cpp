#include <fmt/format.h>

#include <algorithm>

#include "lib/config/json_reader.h"
#include "lib/core/error.h"
#include "lib/core/text.h"
#include "lib/methods/method.h"
#include "lib/methods/setting.h"

namespace s2o {
namespace {

constexpr const char* kCompute = "compute";
constexpr const char* kStored = "stored";
constexpr const char* kFp8 = "fp8";
constexpr const char* kSmoothK = "smooth_k";
constexpr const char* kRotateQk = "rotate_qk";

}  // namespace

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
  throw ConfigError(fmt::format("unknown method '{}'{}; methods: {}", name,
                                did_you_mean(name, names), join(names)));
}

const ParamSet& HeadSetting::params_of(int q_head) const {
  return head_params.empty() ? *params
                             : head_params.at(static_cast<std::size_t>(q_head - q_heads.first));
}

bool same_params(std::span<const ParamSet> a, std::span<const ParamSet> b) {
  return std::ranges::equal(
      a, b, [](const ParamSet& x, const ParamSet& y) { return x.to_json() == y.to_json(); });
}

std::vector<ParamSpec> setting_specs(const MethodInfo& info) {
  std::vector<ParamSpec> specs = info.params;
  if (info.name == "tuned") return specs;  // the methods that it gives heads to have them
  const std::vector<ParamSpec> shared = {
      ParamSpec::choice(kCompute, kStored, {kStored, kFp8},
                        "products of Q, K and V as they are stored, or fp8: Q K^T of 8-bit "
                        "integers, P V in e4m3 or, of gathered keys, fp16"),
      ParamSpec::boolean(kSmoothK, true, "fp8: K less its mean over the sequence"),
      ParamSpec::boolean(kRotateQk, true, "fp8: Q and K rotated by a Hadamard matrix")};
  for (ParamSpec spec : shared) {
    spec.is_implied = true;
    specs.push_back(std::move(spec));
  }
  return specs;
}

std::optional<QuantiseRule> quantise_rule(const ParamSet& params) {
  if (!params.contains(kCompute)) return std::nullopt;
  return QuantiseRule{
      .smooth_k = !params.contains(kSmoothK),  // present where it is not the default
      .rotate_qk = !params.contains(kRotateQk)};
}

std::vector<ParamSet> expand_settings(const Method& method, const nlohmann::ordered_json& entry,
                                      const std::string& path) {
  std::vector<ParamSet> settings = expand_params(setting_specs(method.info()), entry, "name", path);
  for (const ParamSet& params : settings) check_settings(method, params, path);
  return settings;
}

void check_settings(const Method& method, const ParamSet& params, const std::string& path) {
  for (const char* const name : {kSmoothK, kRotateQk}) {
    if (!params.contains(name) || params.contains(kCompute)) continue;
    throw ConfigError(
        fmt::format("{}.{}: found with \"compute\": \"{}\", expected \"{}\" where it is set", path,
                    name, kStored, kFp8));
  }
  try {
    method.check(params);
  } catch (const ConfigError& error) {
    throw ConfigError(fmt::format("{}.{}", path, error.what()));
  }
}

}  // namespace s2o
