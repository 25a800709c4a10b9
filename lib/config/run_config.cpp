#include "lib/config/run_config.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <limits>

#include "kernels/common/kernel_registry.h"
#include "lib/config/json_reader.h"
#include "lib/core/error.h"
#include "lib/core/text.h"

namespace s2o {
namespace {

// Results land in results/<name>, so the name has to be one plain path component.
void check_name(const std::string& name, const std::string& path) {
  const bool plain = !name.empty() && name != "." && name != ".." &&
                     name.find('/') == std::string::npos && name.find('\0') == std::string::npos;
  if (!plain) {
    throw ConfigError(fmt::format(
        "{}: found '{}', expected a name that can be a folder (not empty, no '/')", path, name));
  }
}

// A non-empty list of objects that each have the string `key`.
nlohmann::ordered_json read_entries(const JsonReader& reader, const std::string& list,
                                    const std::string& key) {
  const nlohmann::ordered_json& entries = reader.at(list);
  const std::string path = reader.path_of(list);
  if (!entries.is_array()) throw_wrong_json(entries, path, "a list of objects");
  if (entries.empty()) {
    throw ConfigError(fmt::format("{}: empty list, expected at least one entry", path));
  }
  for (std::size_t i = 0; i < entries.size(); ++i) {
    const std::string entry_path = json_element_path(path, i);
    const nlohmann::ordered_json& entry = entries[i];
    if (!entry.is_object()) {
      throw_wrong_json(entry, entry_path, fmt::format("an object with '{}'", key));
    }
    if (!entry.contains(key)) {
      throw ConfigError(fmt::format("{}: key '{}' is missing", entry_path, key));
    }
    if (!entry[key].is_string()) {
      throw_wrong_json(entry[key], json_member_path(entry_path, key), "a string");
    }
  }
  return entries;
}

TimingConfig read_timing(const JsonReader& root) {
  TimingConfig timing;
  if (!root.has("timing")) return timing;
  const JsonReader reader(root.at("timing"), root.path_of("timing"), kTimingKeys);
  timing.warmup = static_cast<int>(reader.get_int("warmup", timing.warmup, 0, kMaxRepeats));
  timing.repeats = static_cast<int>(reader.get_int("repeats", timing.repeats, 1, kMaxRepeats));
  timing.cpu_repeats =
      static_cast<int>(reader.get_int("cpu_repeats", timing.cpu_repeats, 1, kMaxRepeats));
  return timing;
}

}  // namespace

DeviceChoice parse_device(const std::string& text, const std::string& path) {
  if (text == "auto") return {.kind = DeviceKind::kAuto};
  if (text == "cpu") return {.kind = DeviceKind::kCpu};
  if (text == "cuda") return {.kind = DeviceKind::kCuda};
  constexpr std::string_view kPrefix = "cuda:";
  if (text.starts_with(kPrefix)) {
    int index = -1;
    const char* end = text.data() + text.size();
    const auto parsed = std::from_chars(text.data() + kPrefix.size(), end, index);
    if (parsed.ec == std::errc() && parsed.ptr == end && index >= 0) {
      return {.kind = DeviceKind::kCuda, .index = index};
    }
  }
  throw ConfigError(fmt::format("{}: unknown device '{}'{}; expected auto, cpu, cuda or cuda:<n>",
                                path, text, did_you_mean(text, {"auto", "cpu", "cuda"})));
}

std::string device_text(const DeviceChoice& device) {
  switch (device.kind) {
    case DeviceKind::kAuto:
      return "auto";
    case DeviceKind::kCpu:
      return "cpu";
    case DeviceKind::kCuda:
      return fmt::format("cuda:{}", device.index);
  }
  return "auto";
}

const std::vector<std::string>& kernel_choices() {
  static const std::vector<std::string> choices = [] {
    std::vector<std::string> names = {"auto"};
    for (const KernelInfo& kernel : all_kernels()) {
      if (kernel.op == "attention") names.push_back(kernel.variant);
    }
    return names;
  }();
  return choices;
}

std::string parse_kernel(const std::string& text, const std::string& path) {
  constexpr std::string_view kPrefix = "attention_";
  const std::string name = text.starts_with(kPrefix) ? text.substr(kPrefix.size()) : text;
  const std::vector<std::string>& choices = kernel_choices();
  if (std::find(choices.begin(), choices.end(), name) != choices.end()) return name;
  throw ConfigError(fmt::format("{}: unknown kernel '{}'{}; expected one of {}", path, text,
                                did_you_mean(text, choices), join(choices)));
}

RunConfig parse_run_config(const nlohmann::ordered_json& document,
                           const std::filesystem::path& file) {
  RunConfig config;
  config.file = file.string();
  config.base_folder = file.parent_path();
  const JsonReader reader(document, config.file + ": ", kRunConfigKeys);
  config.name = reader.get_string("name", file.stem().string());
  check_name(config.name, reader.path_of("name"));
  config.seed = static_cast<std::uint64_t>(reader.get_int("seed", 0, 0));
  config.device = parse_device(reader.get_string("device", "auto"), reader.path_of("device"));
  config.kernel = parse_kernel(reader.get_string("kernel", "auto"), reader.path_of("kernel"));
  config.dtype = reader.get_choice("dtype", kDTypeChoices, config.dtype);
  config.inputs = read_entries(reader, "inputs", "source");
  config.methods = read_entries(reader, "methods", "name");
  config.timing = read_timing(reader);
  config.save_outputs = reader.get_bool("save_outputs", config.save_outputs);
  config.allow_nonfinite = reader.get_bool("allow_nonfinite", config.allow_nonfinite);
  return config;
}

RunConfig load_run_config(const std::string& name_or_file, const std::vector<std::string>& sets) {
  const std::filesystem::path file = find_config(name_or_file);
  nlohmann::ordered_json document = read_json_file(file);
  for (const std::string& assignment : sets) apply_set(document, assignment);
  return parse_run_config(document, file);
}

std::string method_path(const RunConfig& config, std::size_t index) {
  const nlohmann::ordered_json& name = config.methods[index]["name"];
  int entries = 0;
  for (const auto& entry : config.methods) entries += entry["name"] == name ? 1 : 0;
  if (entries > 1) return fmt::format("{}: methods[{}]", config.file, index);
  return fmt::format("{}: methods.{}", config.file, name.get<std::string>());
}

nlohmann::ordered_json to_json(const RunConfig& config) {
  return {{"name", config.name},
          {"seed", config.seed},
          {"device", device_text(config.device)},
          {"kernel", config.kernel},
          {"dtype", config.dtype},
          {"inputs", config.inputs},
          {"methods", config.methods},
          {"timing",
           {{"warmup", config.timing.warmup},
            {"repeats", config.timing.repeats},
            {"cpu_repeats", config.timing.cpu_repeats}}},
          {"save_outputs", config.save_outputs},
          {"allow_nonfinite", config.allow_nonfinite}};
}

}  // namespace s2o
