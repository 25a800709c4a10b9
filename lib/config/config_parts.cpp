#include "lib/config/config_parts.h"

#include <fmt/format.h>

#include "lib/core/error.h"
#include "lib/core/printable.h"

namespace s2o {

std::string read_run_name(const JsonReader& reader, const std::string& fallback) {
  const std::string name = reader.get_string("name", printable(fallback));
  const bool plain = !name.empty() && name != "." && name != ".." &&
                     name.find('/') == std::string::npos && name.find('\0') == std::string::npos;
  if (!plain) {
    throw ConfigError(
        fmt::format("{}: found '{}', expected a name that can be a folder (not empty, no '/')",
                    reader.path_of("name"), name));
  }
  return name;
}

nlohmann::ordered_json read_objects(const JsonReader& reader, const std::string& list) {
  const nlohmann::ordered_json& entries = reader.at(list);
  const std::string path = reader.path_of(list);
  if (!entries.is_array()) throw_wrong_json(entries, path, "a list of objects");
  if (entries.empty()) {
    throw ConfigError(fmt::format("{}: empty list, expected at least one entry", path));
  }
  for (std::size_t i = 0; i < entries.size(); ++i) {
    if (!entries[i].is_object()) {
      throw_wrong_json(entries[i], json_element_path(path, i), "an object");
    }
  }
  return entries;
}

nlohmann::ordered_json read_entries(const JsonReader& reader, const std::string& list,
                                    const std::string& key) {
  nlohmann::ordered_json entries = read_objects(reader, list);
  for (std::size_t i = 0; i < entries.size(); ++i) {
    const std::string entry_path = json_element_path(reader.path_of(list), i);
    const nlohmann::ordered_json& entry = entries[i];
    if (!entry.contains(key)) {
      throw ConfigError(fmt::format("{}: key '{}' is missing", entry_path, key));
    }
    if (!entry[key].is_string()) {
      throw_wrong_json(entry[key], json_member_path(entry_path, key), "a string");
    }
  }
  return entries;
}

TimingConfig read_timing(const JsonReader& root, TimingConfig timing, int min_repeats) {
  if (!root.has("timing")) return timing;
  const JsonReader reader(root.at("timing"), root.path_of("timing"), kTimingKeys);
  timing.warmup = static_cast<int>(reader.get_int("warmup", timing.warmup, 0, kMaxRepeats));
  timing.repeats =
      static_cast<int>(reader.get_int("repeats", timing.repeats, min_repeats, kMaxRepeats));
  timing.cpu_repeats =
      static_cast<int>(reader.get_int("cpu_repeats", timing.cpu_repeats, 1, kMaxRepeats));
  return timing;
}

nlohmann::ordered_json to_json(const TimingConfig& timing) {
  return {
      {"warmup", timing.warmup}, {"repeats", timing.repeats}, {"cpu_repeats", timing.cpu_repeats}};
}

std::string method_path(const std::string& file, const nlohmann::ordered_json& methods,
                        std::size_t index) {
  const nlohmann::ordered_json& name = methods[index]["name"];
  int entries = 0;
  for (const auto& entry : methods) entries += entry["name"] == name ? 1 : 0;
  if (entries > 1) return fmt::format("{}: methods[{}]", file, index);
  return fmt::format("{}: methods.{}", file, name.get<std::string>());
}

}  // namespace s2o
