#include "lib/config/run_config.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>

#include "kernels/common/kernel_registry.h"
#include "lib/config/config_parts.h"
#include "lib/config/json_reader.h"
#include "lib/core/error.h"
#include "lib/core/text.h"

namespace s2o {

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
  if (device.kind == DeviceKind::kCuda) return fmt::format("cuda:{}", device.index);
  return device.kind == DeviceKind::kCpu ? "cpu" : "auto";
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
  config.name = read_run_name(reader, file.stem().string());
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
  return method_path(config.file, config.methods, index);
}

nlohmann::ordered_json to_json(const RunConfig& config) {
  return {{"name", config.name},
          {"seed", config.seed},
          {"device", device_text(config.device)},
          {"kernel", config.kernel},
          {"dtype", config.dtype},
          {"inputs", config.inputs},
          {"methods", config.methods},
          {"timing", to_json(config.timing)},
          {"save_outputs", config.save_outputs},
          {"allow_nonfinite", config.allow_nonfinite}};
}

}  // namespace s2o
