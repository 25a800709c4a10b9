// Typed getters over one JSON object of a config that know where the object stands, so that every
// message names its place: "configs/runs.json: inputs[0].layers: found "x" (string), expected ...".
#pragma once

#include <cstdint>
#include <filesystem>
#include <limits>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

namespace s2o {

// The place of a member or element of the value at `path`. A path that ends in ": " (or is empty)
// is the root of a document: "runs.json: " gives "runs.json: inputs", "inputs" gives
// "inputs.layers".
std::string json_member_path(const std::string& path, const std::string& key);
std::string json_element_path(const std::string& path, std::size_t index);

// ConfigError "<path>: found <value> (<type>), expected <expected>".
[[noreturn]] void throw_wrong_json(const nlohmann::ordered_json& value, const std::string& path,
                                   const std::string& expected);
// ", did you mean 'x'?" or "" when no candidate is near.
std::string did_you_mean(const std::string& word, const std::vector<std::string>& candidates);

// The JSON of a file. ConfigError when it cannot be read or is no strict JSON (core/strict_json.h).
nlohmann::ordered_json read_json_file(const std::filesystem::path& file);

class JsonReader {
 public:
  // ConfigError when `value` is no object or has a key that is not in `known_keys` (the nearest one
  // is suggested). `value` must outlive the reader.
  JsonReader(const nlohmann::ordered_json& value, std::string path,
             const std::vector<std::string>& known_keys);
  JsonReader(nlohmann::ordered_json&& value, std::string path,
             const std::vector<std::string>& known_keys) = delete;

  const std::string& path() const { return path_; }
  std::string path_of(const std::string& key) const { return json_member_path(path_, key); }
  bool has(const std::string& key) const { return value_.contains(key); }
  // The value of a key that must be there.
  const nlohmann::ordered_json& at(const std::string& key) const;

  // Each throws ConfigError on a wrong type or range. Where the key is absent they return
  // `fallback`, or throw when there is none.
  std::string get_string(const std::string& key, std::optional<std::string> fallback = {}) const;
  bool get_bool(const std::string& key, std::optional<bool> fallback = {}) const;
  std::int64_t get_int(const std::string& key, std::optional<std::int64_t> fallback = {},
                       std::int64_t min = std::numeric_limits<std::int64_t>::min(),
                       std::int64_t max = std::numeric_limits<std::int64_t>::max()) const;
  double get_real(const std::string& key, std::optional<double> fallback = {},
                  double min = -std::numeric_limits<double>::infinity(),
                  double max = std::numeric_limits<double>::infinity()) const;
  // A string out of `choices`.
  std::string get_choice(const std::string& key, const std::vector<std::string>& choices,
                         std::optional<std::string> fallback = {}) const;

  // One value or a list of values (a sweep). Empty lists and values that occur twice are
  // ConfigErrors. Absent: an empty vector, unless `required`.
  std::vector<std::string> get_strings(const std::string& key, bool required) const;
  std::vector<std::int64_t> get_ints(
      const std::string& key, bool required,
      std::int64_t min = std::numeric_limits<std::int64_t>::min(),
      std::int64_t max = std::numeric_limits<std::int64_t>::max()) const;

 private:
  const nlohmann::ordered_json* find(const std::string& key, bool required) const;

  const nlohmann::ordered_json& value_;
  std::string path_;
};

}  // namespace s2o
