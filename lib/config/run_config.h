// The config of a run: JSON file, then --set, then typed values. Every default is visible here.
//
// Inputs and methods stay raw entries at this level: their keys belong to the sources
// (lib/sources/source.h) and to the methods (lib/methods/method.h), which check them.
#pragma once

#include <cstdint>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

namespace s2o {

enum class DeviceKind { kAuto, kCpu, kCuda };

struct DeviceChoice {
  DeviceKind kind = DeviceKind::kAuto;
  int index = 0;  // of the CUDA device
};
// "auto", "cpu", "cuda" or "cuda:1"; ConfigError otherwise.
DeviceChoice parse_device(const std::string& text, const std::string& path);
std::string device_text(const DeviceChoice& device);

// "auto" or a variant of kernels.def: "ref", "sm80", "sm90"; "attention_sm80" means "sm80".
// ConfigError otherwise.
std::string parse_kernel(const std::string& text, const std::string& path);
// What parse_kernel returns.
const std::vector<std::string>& kernel_choices();

inline constexpr int kMaxRepeats = 1'000'000;

struct TimingConfig {
  int warmup = 3;       // untimed runs before the timed ones, on CUDA
  int repeats = 20;     // timed runs on CUDA
  int cpu_repeats = 1;  // timed runs on the CPU, which takes no warm-up
};

struct RunConfig {
  std::string name;  // default: the file's name without its extension
  std::uint64_t seed = 0;
  DeviceChoice device;
  std::string kernel = "auto";     // attention kernel: the best of the device, or a variant
  std::string dtype = "bf16";      // "fp32", "bf16" or "fp16": storage of Q, K and V
  nlohmann::ordered_json inputs;   // >= 1 objects with "source"
  nlohmann::ordered_json methods;  // >= 1 objects with "name"
  TimingConfig timing;
  bool save_outputs = false;     // keep each method's output in results.h5
  bool allow_nonfinite = false;  // go on when Q, K or V hold NaN or infinity

  std::string file;                   // as messages name it
  std::filesystem::path base_folder;  // relative paths of the config start here
};

inline const std::vector<std::string> kDTypeChoices = {"fp32", "bf16", "fp16"};
// "$schema" lets editors find configs/schema.json; it has no effect.
inline const std::vector<std::string> kRunConfigKeys = {
    "$schema", "name",    "seed",   "device",       "kernel",         "dtype",
    "inputs",  "methods", "timing", "save_outputs", "allow_nonfinite"};
inline const std::vector<std::string> kTimingKeys = {"warmup", "repeats", "cpu_repeats"};

// The file that `name_or_file` means: as given, configs/<name>.json here, <name>.json in the config
// folder of the source tree. ConfigError lists all that was tried.
std::filesystem::path find_config(const std::string& name_or_file);

// Applies "path=value" of --set to a config document. The value is JSON, or a comma-separated list
// of JSON values (a sweep), or else a string. "methods.s2o.tau" means every entry of that name;
// "inputs.0.seqlen" and "methods.2.tau" count entries from 0. ConfigError for a path that means
// nothing (nearest name suggested).
void apply_set(nlohmann::ordered_json& document, const std::string& assignment);

// Checks the document and fills in the defaults. `file` names it in messages.
RunConfig parse_run_config(const nlohmann::ordered_json& document,
                           const std::filesystem::path& file);

// find_config, read, apply_set for each of `sets` in order, parse_run_config.
RunConfig load_run_config(const std::string& name_or_file, const std::vector<std::string>& sets);

// "runs.json: methods.s2o", or "runs.json: methods[3]" if several entries have that name.
std::string method_path(const RunConfig& config, std::size_t index);

// The whole config with its defaults, as results carry it.
nlohmann::ordered_json to_json(const RunConfig& config);

}  // namespace s2o
