#include "lib/config/params.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <utility>

#include "lib/config/json_reader.h"
#include "lib/core/error.h"
#include "lib/core/printable.h"
#include "lib/core/text.h"

namespace s2o {
namespace {

const ParamSpec& find_spec(const std::vector<ParamSpec>& specs, const std::string& name,
                           const std::string& path) {
  std::vector<std::string> names;
  for (const ParamSpec& spec : specs) {
    if (spec.name == name) return spec;
    names.push_back(spec.name);
  }
  throw ConfigError(fmt::format("{}.{}: unknown key{}; known keys: {}", path, name,
                                did_you_mean(name, names), join(names)));
}

// "4, 8 or 16"
std::string allowed_text(const std::vector<std::int64_t>& allowed) {
  std::string text = fmt::format("{}", allowed.front());
  for (std::size_t i = 1; i < allowed.size(); ++i) {
    text += fmt::format("{}{}", i + 1 == allowed.size() ? " or " : ", ", allowed[i]);
  }
  return text;
}

void check_range(const ParamSpec& spec, double value, const std::string& where) {
  // The negated form also rejects NaN.
  if (value >= spec.min && value <= spec.max) return;
  std::string expected;
  if (std::isfinite(spec.min) && std::isfinite(spec.max)) {
    expected = fmt::format("between {} and {}", spec.min, spec.max);
  } else if (std::isfinite(spec.min)) {
    expected = fmt::format(">= {}", spec.min);
  } else {
    expected = fmt::format("<= {}", spec.max);
  }
  throw ConfigError(fmt::format("{}: found {}, expected a value {}", where, value, expected));
}

[[noreturn]] void wrong_type(const std::string& where, const nlohmann::json& value,
                             const char* expected) {
  throw ConfigError(fmt::format("{}: found {} ({}), expected {}", where, json_text(value),
                                value.type_name(), expected));
}

std::int64_t parse_integer(const ParamSpec& spec, const nlohmann::json& value,
                           const std::string& where) {
  const double real = value.is_number() ? value.get<double>() : 0.0;
  // 1e3 is an integer too.
  const bool is_integer =
      value.is_number_integer() ||
      (value.is_number_float() && std::nearbyint(real) == real && std::abs(real) < 0x1p53);
  if (!is_integer) wrong_type(where, value, "an integer");
  if (!spec.allowed.empty()) {
    for (const std::int64_t allowed : spec.allowed) {
      if (static_cast<double>(allowed) == real) return allowed;
    }
    throw ConfigError(fmt::format("{}: found {}, expected {}", where, json_text(value),
                                  allowed_text(spec.allowed)));
  }
  check_range(spec, real, where);
  if (value.is_number_float()) return static_cast<std::int64_t>(real);
  // An unsigned number may be larger than any signed one.
  if (value.is_number_unsigned() && value.get<std::uint64_t>() >> 63 != 0) {
    throw ConfigError(fmt::format("{}: found {}, expected a value <= {}", where, json_text(value),
                                  std::numeric_limits<std::int64_t>::max()));
  }
  return value.get<std::int64_t>();
}

ParamValue parse_value(const ParamSpec& spec, const nlohmann::json& value,
                       const std::string& where) {
  const bool may_be_null = std::holds_alternative<std::monostate>(spec.value);
  if (value.is_null() && may_be_null) return std::monostate{};
  switch (spec.type) {
    case ParamType::kBool:
      if (!value.is_boolean()) wrong_type(where, value, "true or false");
      return value.get<bool>();
    case ParamType::kInt:
      return parse_integer(spec, value, where);
    case ParamType::kReal:
      if (!value.is_number()) wrong_type(where, value, "a number");
      check_range(spec, value.get<double>(), where);
      return value.get<double>();
    case ParamType::kChoice: {
      if (!value.is_string()) wrong_type(where, value, "a string");
      const auto text = value.get<std::string>();
      if (std::ranges::find(spec.choices, text) != spec.choices.end()) return text;
      throw ConfigError(fmt::format("{}: unknown value '{}'{}; expected one of: {}", where, text,
                                    did_you_mean(text, spec.choices), join(spec.choices)));
    }
    case ParamType::kPath:
      if (!value.is_string()) wrong_type(where, value, "a file");
      return value.get<std::string>();
  }
  wrong_type(where, value, "another type");
}

}  // namespace

ParamSpec ParamSpec::boolean(std::string name, bool value, std::string help) {
  return {
      .name = std::move(name), .type = ParamType::kBool, .value = value, .help = std::move(help)};
}

ParamSpec ParamSpec::integer(std::string name, std::int64_t value, std::string help, double min,
                             double max) {
  return {.name = std::move(name),
          .type = ParamType::kInt,
          .value = value,
          .help = std::move(help),
          .min = min,
          .max = max};
}

ParamSpec ParamSpec::integer_of(std::string name, std::int64_t value,
                                std::vector<std::int64_t> allowed, std::string help) {
  const auto least = static_cast<double>(allowed.front());
  const auto most = static_cast<double>(allowed.back());
  return {.name = std::move(name),
          .type = ParamType::kInt,
          .value = value,
          .help = std::move(help),
          .min = least,
          .max = most,
          .allowed = std::move(allowed)};
}

ParamSpec ParamSpec::real(std::string name, double value, std::string help, double min,
                          double max) {
  return {.name = std::move(name),
          .type = ParamType::kReal,
          .value = value,
          .help = std::move(help),
          .min = min,
          .max = max};
}

ParamSpec ParamSpec::optional_real(std::string name, std::string help, double min, double max) {
  return {.name = std::move(name),
          .type = ParamType::kReal,
          .value = std::monostate{},
          .help = std::move(help),
          .min = min,
          .max = max};
}

ParamSpec ParamSpec::choice(std::string name, std::string value, std::vector<std::string> choices,
                            std::string help) {
  return {.name = std::move(name),
          .type = ParamType::kChoice,
          .value = std::move(value),
          .help = std::move(help),
          .choices = std::move(choices)};
}

ParamSpec ParamSpec::path(std::string name, std::string help) {
  return {.name = std::move(name),
          .type = ParamType::kPath,
          .value = std::string(),
          .help = std::move(help)};
}

ParamSet::ParamSet(const std::vector<ParamSpec>& specs) {
  for (const ParamSpec& spec : specs) {
    if (!spec.is_implied) values_.emplace_back(spec.name, spec.value);
  }
}

void ParamSet::set(const std::vector<ParamSpec>& specs, const std::string& name,
                   const nlohmann::json& value, const std::string& path) {
  const ParamSpec& spec = find_spec(specs, name, path);
  ParamValue parsed = parse_value(spec, value, path + "." + name);
  if (spec.is_implied) {
    std::erase_if(values_, [&name](const auto& held) { return held.first == name; });
    if (parsed != spec.value) values_.emplace_back(name, std::move(parsed));
    return;
  }
  for (auto& [key, stored] : values_) {
    if (key == name) stored = std::move(parsed);
  }
}

const ParamValue& ParamSet::at(const std::string& name) const {
  for (const auto& [key, value] : values_) {
    if (key == name) return value;
  }
  throw ConfigError(fmt::format("parameter '{}' is not declared by this method", name));
}

bool ParamSet::get_bool(const std::string& name) const { return std::get<bool>(at(name)); }
std::int64_t ParamSet::get_int(const std::string& name) const {
  return std::get<std::int64_t>(at(name));
}
double ParamSet::get_real(const std::string& name) const { return std::get<double>(at(name)); }
const std::string& ParamSet::get_choice(const std::string& name) const {
  return std::get<std::string>(at(name));
}
const std::string& ParamSet::get_path(const std::string& name) const { return get_choice(name); }
bool ParamSet::is_set(const std::string& name) const {
  return !std::holds_alternative<std::monostate>(at(name));
}

bool ParamSet::contains(const std::string& name) const {
  return std::any_of(values_.begin(), values_.end(),
                     [&name](const auto& held) { return held.first == name; });
}

nlohmann::ordered_json ParamSet::to_json() const {
  auto object = nlohmann::ordered_json::object();
  for (const auto& [name, value] : values_) {
    std::visit(
        [&object, &key = name](const auto& held) {
          if constexpr (std::is_same_v<std::decay_t<decltype(held)>, std::monostate>) {
            object[key] = nullptr;
          } else {
            object[key] = held;
          }
        },
        value);
  }
  return object;
}

std::vector<ParamSet> expand_params(const std::vector<ParamSpec>& specs,
                                    const nlohmann::ordered_json& object,
                                    const std::string& skip_key, const std::string& path) {
  std::vector<ParamSet> settings = {ParamSet(specs)};
  for (const auto& [name, value] : object.items()) {
    if (name == skip_key) continue;
    if (!value.is_array()) {
      for (ParamSet& setting : settings) setting.set(specs, name, value, path);
      continue;
    }
    if (value.empty()) {
      find_spec(specs, name, path);
      throw ConfigError(fmt::format("{}.{}: empty sweep, expected at least one value", path, name));
    }
    std::vector<ParamSet> expanded;
    for (const ParamSet& setting : settings) {
      for (const auto& choice : value) {
        expanded.push_back(setting);
        expanded.back().set(specs, name, choice, path);
      }
    }
    settings = std::move(expanded);
  }
  return settings;
}

}  // namespace s2o
