#include "lib/model/config_fields.h"

#include <fmt/format.h>

#include <limits>
#include <utility>

#include "lib/core/error.h"

namespace s2o {
namespace {

std::string shortened(const std::string& json) {
  return json.size() <= 80 ? json : json.substr(0, 77) + "...";
}

}  // namespace

ConfigFields::ConfigFields(const nlohmann::json& object, std::string where)
    : object_(object), where_(std::move(where)) {}

const nlohmann::json* ConfigFields::find(const char* key) const {
  const auto it = object_.find(key);
  return it == object_.end() || it->is_null() ? nullptr : &*it;
}

void ConfigFields::wrong(const char* key, const std::string& expected) const {
  const nlohmann::json* value = find(key);
  throw InputError(value == nullptr ? fmt::format("{}: missing, expected {}", place(key), expected)
                                    : fmt::format("{}: found {}, expected {}", place(key),
                                                  shortened(value->dump()), expected));
}

void ConfigFields::unsupported(const char* key, const std::string& found,
                               const std::string& supported) const {
  throw UnsupportedError(fmt::format("{}: found {}, supported: {}", place(key), found, supported));
}

std::int64_t ConfigFields::positive(const char* key, std::optional<std::int64_t> fallback,
                                    std::int64_t max) const {
  const nlohmann::json* value = find(key);
  if (value == nullptr && fallback) return *fallback;
  const bool fits = value != nullptr && value->is_number_integer() && value->get<double>() >= 1.0 &&
                    value->get<double>() <= static_cast<double>(max);
  if (!fits) wrong(key, fmt::format("an integer in [1, {}]", max));
  return value->get<std::int64_t>();
}

float ConfigFields::real(const char* key, std::optional<float> fallback, float above) const {
  const nlohmann::json* value = find(key);
  if (value == nullptr && fallback) return *fallback;
  constexpr float kMax = std::numeric_limits<float>::max();
  const bool fits = value != nullptr && value->is_number() && value->get<double>() > above &&
                    value->get<double>() <= kMax;
  if (!fits) wrong(key, fmt::format("a number > {} and <= {}", above, kMax));
  return value->get<float>();
}

bool ConfigFields::flag(const char* key, bool fallback) const {
  const nlohmann::json* value = find(key);
  if (value == nullptr) return fallback;
  if (!value->is_boolean()) wrong(key, "true or false");
  return value->get<bool>();
}

std::string ConfigFields::text(const char* key, std::optional<std::string> fallback) const {
  const nlohmann::json* value = find(key);
  if (value == nullptr && fallback) return *fallback;
  if (value == nullptr || !value->is_string()) wrong(key, "a string");
  return value->get<std::string>();
}

}  // namespace s2o
