// Where Q, K and V come from: a dump, a model's weights and tokens, or a seeded generator.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "lib/config/params.h"
#include "lib/input/attention_input.h"
#include "lib/input/identity.h"

namespace s2o {

struct SourceOptions {
  std::filesystem::path base_folder;  // relative paths of the config start here
  StorageDType dtype = StorageDType::kBF16;
  std::uint64_t seed = 0;
  bool allow_nonfinite = false;
};

// One (file or model or pattern, layer, seqlen): loaded when needed, dropped afterwards.
struct InputCell {
  std::string name;
  int layer = 0;
  std::int64_t seqlen = 0;   // 0 when only the file knows
  bool names_layer = false;  // `layer` is that of the model; else nobody knows it, and it is 0
  InputIdentity identity = {};
  std::function<AttentionInput()> load;
};

// The "inputs" entry of a config, checked against its keys, expanded over its lists (seqlen,
// layers). Each function throws ConfigError for a wrong key or value (`path` is its place in the
// config) and InputError for files that are missing or broken, as early as possible.
std::vector<InputCell> expand_dump_source(const nlohmann::ordered_json& entry,
                                          const std::string& path, const SourceOptions& options);
std::vector<InputCell> expand_weights_source(const nlohmann::ordered_json& entry,
                                             const std::string& path, const SourceOptions& options);
std::vector<InputCell> expand_synthetic_source(const nlohmann::ordered_json& entry,
                                               const std::string& path,
                                               const SourceOptions& options);
// Dispatches on entry["source"].
std::vector<InputCell> expand_source(const nlohmann::ordered_json& entry, const std::string& path,
                                     const SourceOptions& options);

}  // namespace s2o
