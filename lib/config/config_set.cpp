// Finding a config file, and changing values of it from the command line.
#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <optional>
#include <set>

#include "lib/config/config_parts.h"
#include "lib/core/error.h"
#include "lib/core/printable.h"
#include "lib/core/strict_json.h"
#include "lib/core/text.h"
#include "s2o_config_folder.h"

namespace s2o {
namespace {

using Json = nlohmann::ordered_json;

std::vector<std::string> split(const std::string& text, char separator) {
  std::vector<std::string> parts;
  std::size_t begin = 0;
  while (true) {
    const std::size_t end = text.find(separator, begin);
    parts.push_back(text.substr(begin, end - begin));
    if (end == std::string::npos) return parts;
    begin = end + 1;
  }
}

std::optional<Json> parse_json(const std::string& text) {
  try {
    return parse_strict_json(text);
  } catch (const JsonTextError&) {
    return std::nullopt;
  }
}

Json parse_value(const std::string& text, const std::string& where) {
  if (auto whole = parse_json(text)) return *whole;
  const std::vector<std::string> parts = split(text, ',');
  if (parts.size() == 1) {
    if (text.empty()) throw ConfigError(where + ": empty value");
    return text;
  }
  Json list = Json::array();
  for (const std::string& part : parts) {
    if (part.empty()) throw ConfigError(where + ": the list has an empty element");
    auto element = parse_json(part);
    list.push_back(element ? *element : Json(part));
  }
  return list;
}

std::optional<std::size_t> parse_index(const std::string& text) {
  std::size_t index = 0;
  const char* end = text.data() + text.size();
  const auto parsed = std::from_chars(text.data(), end, index);
  if (parsed.ec != std::errc() || parsed.ptr != end) return std::nullopt;
  return index;
}

// The entries of list `list` that `selector` (an index, or a method's name) means.
std::vector<Json*> select_entries(Json& document, const std::string& list,
                                  const std::string& selector, const std::string& where) {
  Json& entries = document[list];
  if (!entries.is_array()) throw_wrong_json(entries, where + ": " + list, "a list of objects");
  if (const auto index = parse_index(selector)) {
    if (*index >= entries.size()) {
      throw ConfigError(fmt::format("{}: the config has {} {}, there is no number {}", where,
                                    entries.size(), list, *index));
    }
    return {&entries[*index]};
  }
  if (list != "methods") {
    throw ConfigError(fmt::format("{}: found '{}', expected the number of an {}, counted from 0",
                                  where, selector, list == "inputs" ? "input" : "entry"));
  }
  std::vector<Json*> selected;
  std::vector<std::string> names;
  for (Json& entry : entries) {
    if (!entry.is_object() || !entry.contains("name") || !entry["name"].is_string()) continue;
    names.push_back(entry["name"].get<std::string>());
    if (names.back() == selector) selected.push_back(&entry);
  }
  if (selected.empty()) {
    throw ConfigError(fmt::format("{}: the config has no method '{}'{}; it has: {}", where,
                                  selector, did_you_mean(selector, names), join(names)));
  }
  return selected;
}

void check_key(const std::string& key, const std::vector<std::string>& known,
               const std::string& where) {
  if (std::find(known.begin(), known.end(), key) != known.end()) return;
  throw ConfigError(fmt::format("{}: unknown key '{}'{}; known keys: {}", where, key,
                                did_you_mean(key, known), join(known)));
}

// Sets members[..] of `object`, making nested objects ("inputs.0.tensors.q") where they miss.
void set_member(Json& object, const std::vector<std::string>& members, const Json& value,
                const std::string& where) {
  Json* place = &object;
  for (std::size_t i = 0; i < members.size(); ++i) {
    if (!place->is_object() && !place->is_null()) throw_wrong_json(*place, where, "an object here");
    place = &(*place)[members[i]];
  }
  *place = value;
}

std::vector<std::string> config_names(const std::vector<std::filesystem::path>& folders) {
  std::set<std::string> names;
  for (const auto& folder : folders) {
    std::error_code ignored;
    for (const auto& entry : std::filesystem::directory_iterator(folder, ignored)) {
      if (entry.path().extension() == ".json") names.insert(entry.path().stem().string());
    }
  }
  return {names.begin(), names.end()};
}

}  // namespace

std::filesystem::path find_config(const std::string& name_or_file) {
  const std::vector<std::filesystem::path> folders = {"configs", S2O_CONFIG_FOLDER};
  std::vector<std::filesystem::path> candidates = {name_or_file};
  for (const auto& folder : folders) candidates.push_back(folder / (name_or_file + ".json"));
  std::vector<std::string> tried;
  for (const auto& candidate : candidates) {
    std::error_code ignored;
    // A folder of that name (results/ beside configs/) does not hide the config.
    if (std::filesystem::exists(candidate, ignored) &&
        !std::filesystem::is_directory(candidate, ignored)) {
      return candidate;
    }
    tried.push_back(candidate.string());
  }
  throw ConfigError(fmt::format("no config '{}'{}; tried: {}", name_or_file,
                                did_you_mean(name_or_file, config_names(folders)), join(tried)));
}

void apply_set(Json& document, const std::string& assignment, const ConfigKeys& keys) {
  const std::string where = "--set " + assignment;
  if (!is_utf8(assignment)) throw ConfigError(where + ": is not UTF-8, as all of a config");
  const std::size_t equals = assignment.find('=');
  if (equals == std::string::npos || equals == 0) {
    throw ConfigError(where + ": expected path=value, e.g. methods.s2o.tau=0.01,0.02");
  }
  std::vector<std::string> members = split(assignment.substr(0, equals), '.');
  const Json value = parse_value(assignment.substr(equals + 1), where);
  if (std::find(members.begin(), members.end(), "") != members.end()) {
    throw ConfigError(where + ": the path has an empty part");
  }
  if (!document.is_object()) return;  // reported with its place when the document is parsed
  const std::string head = members.front();
  check_key(head, keys.top, where);
  members.erase(members.begin());
  const auto object = keys.objects.find(head);
  if (members.empty()) {
    document[head] = value;
  } else if (object != keys.objects.end()) {
    if (!object->second.empty()) check_key(members.front(), object->second, where);
    set_member(document[head], members, value, where);
  } else if (std::find(keys.lists.begin(), keys.lists.end(), head) != keys.lists.end()) {
    const std::string selector = members.front();
    members.erase(members.begin());
    if (members.empty()) {
      throw ConfigError(fmt::format("{}: expected {}.{}.<key>=value", where, head, selector));
    }
    for (Json* entry : select_entries(document, head, selector, where)) {
      set_member(*entry, members, value, where);
    }
  } else {
    throw ConfigError(
        fmt::format("{}: '{}' is a single value, it has no '{}'", where, head, members.front()));
  }
}

void apply_set(Json& document, const std::string& assignment) {
  static const ConfigKeys kKeys = {
      .top = kRunConfigKeys, .objects = {{"timing", kTimingKeys}}, .lists = {"inputs", "methods"}};
  apply_set(document, assignment, kKeys);
}

}  // namespace s2o
