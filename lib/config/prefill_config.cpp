#include "lib/config/prefill_config.h"

#include <limits>

#include "lib/config/config_parts.h"
#include "lib/core/error.h"

namespace s2o {
namespace {

using Json = nlohmann::ordered_json;

Json read_model(const JsonReader& reader) {
  const Json& model = reader.at("model");
  if (!model.is_string() && !model.is_object()) {
    throw_wrong_json(model, reader.path_of("model"), "a model directory, or {\"shape\": ...}");
  }
  return model;
}

Json read_replay(const JsonReader& reader) {
  if (!reader.has("replay") || reader.at("replay").is_null()) return nullptr;
  const Json& replay = reader.at("replay");
  // A capture file alone is the usual case.
  if (replay.is_string()) return {{"source", "dump"}, {"path", replay}};
  if (!replay.is_object()) {
    throw_wrong_json(replay, reader.path_of("replay"), "a capture file, or an input");
  }
  return replay;
}

}  // namespace

PrefillConfig parse_prefill_config(const Json& document, const std::filesystem::path& file) {
  PrefillConfig config;
  config.file = file.string();
  config.base_folder = file.parent_path();
  const JsonReader reader(document, config.file + ": ", kPrefillConfigKeys);
  config.name = read_run_name(reader, file.stem().string());
  config.seed = static_cast<std::uint64_t>(reader.get_int("seed", 0, 0));
  config.device = parse_device(reader.get_string("device", "auto"), reader.path_of("device"));
  config.kernel = parse_kernel(reader.get_string("kernel", "auto"), reader.path_of("kernel"));
  config.dtype = reader.get_choice("dtype", kDTypeChoices, config.dtype);
  config.parallel = static_cast<int>(reader.get_int("parallel", config.parallel, 1, kMaxParallel));
  config.model = read_model(reader);
  config.prompts = read_objects(reader, "prompts");
  config.methods = read_entries(reader, "methods", "name");
  constexpr std::int64_t kMaxLayer = std::numeric_limits<int>::max();
  const bool none_dense = reader.has("dense_layers") && reader.at("dense_layers") == Json::array();
  if (!none_dense) {
    for (const std::int64_t layer : reader.get_ints("dense_layers", false, 0, kMaxLayer)) {
      config.dense_layers.push_back(static_cast<int>(layer));
    }
  }
  config.replay = read_replay(reader);
  config.logit_positions = static_cast<int>(
      reader.get_int("logit_positions", config.logit_positions, 0, kMaxLogitPositions));
  config.check_rows =
      static_cast<int>(reader.get_int("check_rows", config.check_rows, 0, kMaxCheckRows));
  config.timing = read_timing(reader, config.timing, /*min_repeats=*/0);
  return config;
}

PrefillConfig load_prefill_config(const std::string& name_or_file,
                                  const std::vector<std::string>& sets) {
  static const ConfigKeys kKeys = {
      .top = kPrefillConfigKeys,
      .objects = {{"timing", kTimingKeys}, {"model", kModelShapeKeys}, {"replay", {}}},
      .lists = {"prompts", "methods"}};
  const std::filesystem::path file = find_config(name_or_file);
  Json document = read_json_file(file);
  for (const std::string& assignment : sets) apply_set(document, assignment, kKeys);
  return parse_prefill_config(document, file);
}

Json to_json(const PrefillConfig& config) {
  Json json = {{"name", config.name},
               {"seed", config.seed},
               {"device", device_text(config.device)},
               {"kernel", config.kernel},
               {"dtype", config.dtype},
               {"model", config.model},
               {"prompts", config.prompts},
               {"methods", config.methods},
               {"dense_layers", config.dense_layers},
               {"replay", config.replay},
               {"logit_positions", config.logit_positions},
               {"parallel", config.parallel},
               {"timing", to_json(config.timing)}};
  // Younger than others: left away where it changes nothing, what earlier versions computed can be
  // resumed.
  if (config.check_rows > 0) json["check_rows"] = config.check_rows;
  return json;
}

}  // namespace s2o
