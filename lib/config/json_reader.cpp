#include "lib/config/json_reader.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <set>
#include <utility>

#include "lib/core/error.h"
#include "lib/core/printable.h"
#include "lib/core/regular_file.h"
#include "lib/core/strict_json.h"
#include "lib/core/text.h"

namespace s2o {
namespace {

// A whole config in a message helps nobody.
constexpr std::size_t kMaxQuotedChars = 60;
constexpr std::uint64_t kMaxConfigBytes = 64 << 20;

// The path of the value itself: the root is called by its document alone.
std::string place(const std::string& path) {
  if (path.empty()) return "config";
  return path.ends_with(": ") ? path.substr(0, path.size() - 2) : path;
}

std::string parse_string(const nlohmann::ordered_json& value, const std::string& path) {
  if (!value.is_string()) throw_wrong_json(value, path, "a string");
  return value.get<std::string>();
}

std::int64_t parse_int(const nlohmann::ordered_json& value, const std::string& path,
                       std::int64_t min, std::int64_t max) {
  std::int64_t number = 0;
  if (value.is_number_unsigned()) {
    const auto wide = value.get<std::uint64_t>();
    if (wide > static_cast<std::uint64_t>(std::numeric_limits<std::int64_t>::max())) {
      throw_wrong_json(value, path, "an integer below 2^63");
    }
    number = static_cast<std::int64_t>(wide);
  } else if (value.is_number_integer()) {
    number = value.get<std::int64_t>();
  } else if (value.is_number_float() &&
             std::nearbyint(value.get<double>()) == value.get<double>() &&
             std::abs(value.get<double>()) < 0x1p53) {
    number = static_cast<std::int64_t>(value.get<double>());  // 1e5 is an integer too
  } else {
    throw_wrong_json(value, path, "an integer");
  }
  if (number < min || number > max) {
    const bool has_max = max != std::numeric_limits<std::int64_t>::max();
    throw_wrong_json(value, path,
                     has_max ? fmt::format("an integer between {} and {}", min, max)
                             : fmt::format("an integer >= {}", min));
  }
  return number;
}

// parse(element, its path) over a value that may be a list.
template <class T, class Parse>
std::vector<T> parse_sweep(const nlohmann::ordered_json* value, const std::string& path,
                           Parse&& parse) {
  std::vector<T> values;
  std::set<T> seen;
  if (value == nullptr) return values;
  if (!value->is_array()) return {parse(*value, path)};
  if (value->empty()) {
    throw ConfigError(fmt::format("{}: empty list, expected at least one value", path));
  }
  for (std::size_t i = 0; i < value->size(); ++i) {
    const std::string element_path = json_element_path(path, i);
    T parsed = parse((*value)[i], element_path);
    if (!seen.insert(parsed).second) {
      throw ConfigError(fmt::format("{}: {} occurs twice in the list", element_path, parsed));
    }
    values.push_back(std::move(parsed));
  }
  return values;
}

}  // namespace

std::string json_member_path(const std::string& path, const std::string& key) {
  if (path.empty() || path.ends_with(": ")) return path + key;
  return path + "." + key;
}

std::string json_element_path(const std::string& path, std::size_t index) {
  return fmt::format("{}[{}]", path, index);
}

void throw_wrong_json(const nlohmann::ordered_json& value, const std::string& path,
                      const std::string& expected) {
  std::string found = json_text(value);
  if (found.size() > kMaxQuotedChars) found = found.substr(0, kMaxQuotedChars) + "...";
  throw ConfigError(fmt::format("{}: found {} ({}), expected {}", place(path), found,
                                value.type_name(), expected));
}

std::string did_you_mean(const std::string& word, const std::vector<std::string>& candidates) {
  const std::string nearest = nearest_name(word, candidates);
  return nearest.empty() ? "" : fmt::format(", did you mean '{}'?", nearest);
}

nlohmann::ordered_json read_json_file(const std::filesystem::path& file) {
  try {
    const RegularFile opened(file);
    if (opened.size() > kMaxConfigBytes) {
      throw ConfigError(fmt::format("{}: {} bytes, expected a config of at most {}", file.string(),
                                    opened.size(), kMaxConfigBytes));
    }
    return parse_strict_json(read_whole_file(file));
  } catch (const JsonTextError& error) {
    throw ConfigError(fmt::format("{}: {}", file.string(), error.what()));
  } catch (const InputError& error) {
    throw ConfigError(error.what());  // names the file
  }
}

JsonReader::JsonReader(const nlohmann::ordered_json& value, std::string path,
                       const std::vector<std::string>& known_keys)
    : value_(value), path_(std::move(path)) {
  if (!value_.is_object()) throw_wrong_json(value_, path_, "an object");
  for (const auto& [key, member] : value_.items()) {
    if (std::find(known_keys.begin(), known_keys.end(), key) != known_keys.end()) continue;
    throw ConfigError(fmt::format("{}: unknown key{}; known keys: {}", path_of(key),
                                  did_you_mean(key, known_keys), join(known_keys)));
  }
}

const nlohmann::ordered_json* JsonReader::find(const std::string& key, bool required) const {
  const auto found = value_.find(key);
  if (found != value_.end()) return &*found;
  if (required) throw ConfigError(fmt::format("{}: key '{}' is missing", place(path_), key));
  return nullptr;
}

const nlohmann::ordered_json& JsonReader::at(const std::string& key) const {
  return *find(key, true);
}

std::string JsonReader::get_string(const std::string& key,
                                   std::optional<std::string> fallback) const {
  const auto* value = find(key, !fallback);
  return value != nullptr ? parse_string(*value, path_of(key)) : *fallback;
}

bool JsonReader::get_bool(const std::string& key, std::optional<bool> fallback) const {
  const auto* value = find(key, !fallback);
  if (value == nullptr) return *fallback;
  if (!value->is_boolean()) throw_wrong_json(*value, path_of(key), "true or false");
  return value->get<bool>();
}

std::int64_t JsonReader::get_int(const std::string& key, std::optional<std::int64_t> fallback,
                                 std::int64_t min, std::int64_t max) const {
  const auto* value = find(key, !fallback);
  return value != nullptr ? parse_int(*value, path_of(key), min, max) : *fallback;
}

double JsonReader::get_real(const std::string& key, std::optional<double> fallback, double min,
                            double max) const {
  const auto* value = find(key, !fallback);
  if (value == nullptr) return *fallback;
  if (!value->is_number()) throw_wrong_json(*value, path_of(key), "a number");
  const auto number = value->get<double>();
  if (number < min || number > max) {
    throw_wrong_json(*value, path_of(key), fmt::format("a number between {} and {}", min, max));
  }
  return number;
}

std::string JsonReader::get_choice(const std::string& key, const std::vector<std::string>& choices,
                                   std::optional<std::string> fallback) const {
  const auto* value = find(key, !fallback);
  if (value == nullptr) return *fallback;
  const std::string text = parse_string(*value, path_of(key));
  if (std::find(choices.begin(), choices.end(), text) == choices.end()) {
    throw ConfigError(fmt::format("{}: unknown value '{}'{}; expected one of: {}", path_of(key),
                                  text, did_you_mean(text, choices), join(choices)));
  }
  return text;
}

std::vector<std::string> JsonReader::get_strings(const std::string& key, bool required) const {
  return parse_sweep<std::string>(find(key, required), path_of(key), parse_string);
}

std::vector<std::int64_t> JsonReader::get_ints(const std::string& key, bool required,
                                               std::int64_t min, std::int64_t max) const {
  return parse_sweep<std::int64_t>(
      find(key, required), path_of(key),
      [min, max](const nlohmann::ordered_json& value, const std::string& path) {
        return parse_int(value, path, min, max);
      });
}

}  // namespace s2o
