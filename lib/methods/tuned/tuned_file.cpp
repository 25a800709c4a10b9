#include "lib/methods/tuned/tuned_file.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <fstream>
#include <iterator>
#include <limits>
#include <map>
#include <mutex>
#include <set>

#include "lib/config/json_reader.h"
#include "lib/core/atomic_file.h"
#include "lib/core/error.h"
#include "lib/core/file_identity.h"
#include "lib/core/printable.h"
#include "lib/core/text.h"
#include "lib/core/version.h"

namespace s2o {
namespace {

using Json = nlohmann::ordered_json;

constexpr int kVersion = 1;
constexpr std::size_t kMaxSettings = 4096;
constexpr double kLargestEffect = 1e100;  // sums stay finite
constexpr const char* kKind = "s2o tuned settings";

TunedModel read_model(const JsonReader& root) {
  const JsonReader model(root.at("model"), root.path_of("model"),
                         {"name", "id", "num_layers", "num_q_heads", "num_kv_heads", "head_dim"});
  const auto count = [&model](const char* key) {
    return static_cast<int>(model.get_int(key, {}, 1, 1 << 20));
  };
  TunedModel read = {.name = model.get_string("name"),
                     .id = model.get_string("id"),
                     .num_layers = count("num_layers"),
                     .num_q_heads = count("num_q_heads"),
                     .num_kv_heads = count("num_kv_heads"),
                     .head_dim = count("head_dim")};
  if (read.num_q_heads % read.num_kv_heads != 0) {
    throw ConfigError(fmt::format("{}: {} query heads, expected a multiple of {} KV heads",
                                  model.path(), read.num_q_heads, read.num_kv_heads));
  }
  return read;
}

const Json& array_of(const Json& value, std::size_t size, const std::string& path,
                     const char* what) {
  if (!value.is_array() || value.size() != size) {
    throw ConfigError(fmt::format(
        "{}: found {}, expected a list of {} {}", path,
        value.is_array() ? fmt::format("{} entries", value.size()) : json_text(value), size, what));
  }
  return value;
}

const Json& object_at(const JsonReader& reader, const char* key) {
  const Json& value = reader.at(key);
  if (!value.is_object()) throw_wrong_json(value, reader.path_of(key), "an object");
  return value;
}

// What the check of a run compares with: one number.
Json read_target(const JsonReader& root) {
  const JsonReader target(root.at("target"), root.path_of("target"),
                          {"loss", "relative_l2", "mass"});
  const Json& value = root.at("target");
  if (value.size() != 1) throw_wrong_json(value, target.path(), "one target");
  target.get_real(value.begin().key(), {}, 0.0);
  return value;
}

// Effects of layers, if the file has them, are weights of errors: one a layer.
Json read_context(const JsonReader& root, const TunedModel& model) {
  const Json& context = object_at(root, "context");
  if (!context.contains("effects")) return context;
  const std::string path = json_member_path(root.path_of("context"), "effects");
  for (const Json& effect :
       array_of(context["effects"], static_cast<std::size_t>(model.num_layers), path, "layers")) {
    const bool is_weight =
        effect.is_number() && effect.get<double>() >= 0.0 && effect.get<double>() <= kLargestEffect;
    if (!is_weight) {
      throw_wrong_json(effect, path, fmt::format("numbers in [0, {}]", kLargestEffect));
    }
  }
  return context;
}

const Method& method_of(const std::string& name, const std::string& path) try {
  return find_method(name);
} catch (const ConfigError& error) {
  throw ConfigError(fmt::format("{}: {}", path, error.what()));
}

TunedSetting read_setting(const Json& entry, const std::string& path) {
  if (!entry.is_object() || !entry.contains("name") || !entry["name"].is_string()) {
    throw_wrong_json(entry, path, "an object with \"name\"");
  }
  const Method& method = method_of(entry["name"].get<std::string>(), path);
  std::vector<ParamSet> params = expand_settings(method, entry, path);
  if (params.size() != 1) throw ConfigError(path + ": a sweep, expected one setting");
  if (&method == &find_method("tuned") || method.info().is_oracle) {
    throw ConfigError(fmt::format("{}: {} cannot be tuned", path, method.info().name));
  }
  return {.method = &method, .params = std::make_shared<const ParamSet>(std::move(params[0]))};
}

TunedLength read_length(const Json& entry, const std::string& path, const TunedFile& file) {
  const JsonReader reader(entry, path, {"seqlen", "layers", "measured"});
  TunedLength length{.seqlen = reader.get_int("seqlen", {}, 1)};
  if (reader.has("measured")) length.measured = object_at(reader, "measured");
  const std::string layers_path = reader.path_of("layers");
  const Json& layers = array_of(
      reader.at("layers"), static_cast<std::size_t>(file.model.num_layers), layers_path, "layers");
  for (std::size_t i = 0; i < layers.size(); ++i) {
    const std::string layer_path = json_element_path(layers_path, i);
    std::vector<int>& heads = length.layers.emplace_back();
    for (const Json& head : array_of(layers[i], static_cast<std::size_t>(file.model.num_q_heads),
                                     layer_path, "query heads")) {
      const bool is_setting =
          head.is_number_integer() && head.get<std::int64_t>() >= 0 &&
          head.get<std::int64_t>() < static_cast<std::int64_t>(file.settings.size());
      if (!is_setting) {
        throw_wrong_json(head, layer_path,
                         fmt::format("numbers of settings in [0, {})", file.settings.size()));
      }
      heads.push_back(head.get<int>());
    }
  }
  return length;
}

TunedFile parse(const Json& document, const std::string& name) {
  const JsonReader root(
      document, name + ": ",
      {"kind", "schema_version", "model", "context", "target", "objective", "settings", "lengths"});
  if (root.get_string("kind") != kKind) {
    throw_wrong_json(root.at("kind"), root.path_of("kind"), fmt::format("\"{}\"", kKind));
  }
  root.get_int("schema_version", {}, kVersion, kVersion);
  const TunedModel model = read_model(root);
  TunedFile file{.model = model,
                 .context = read_context(root, model),
                 .target = read_target(root),
                 .objective = root.get_choice("objective", {"time", "density"})};
  const Json& settings = root.at("settings");
  const Json& lengths = root.at("lengths");
  for (const char* list : {"settings", "lengths"}) {
    if (root.at(list).is_array() && !root.at(list).empty()) continue;
    throw_wrong_json(root.at(list), root.path_of(list), "a list of at least one");
  }
  if (settings.size() > kMaxSettings) {
    throw ConfigError(fmt::format("{}: found {} entries, expected at most {}",
                                  root.path_of("settings"), settings.size(), kMaxSettings));
  }
  for (std::size_t i = 0; i < settings.size(); ++i) {
    file.settings.push_back(
        read_setting(settings[i], json_element_path(root.path_of("settings"), i)));
  }
  for (std::size_t i = 0; i < lengths.size(); ++i) {
    const std::string path = json_element_path(root.path_of("lengths"), i);
    file.lengths.push_back(read_length(lengths[i], path, file));
    if (i == 0 || file.lengths[i].seqlen > file.lengths[i - 1].seqlen) continue;
    throw ConfigError(
        fmt::format("{}.seqlen: found {} after {}, expected lengths in ascending order", path,
                    file.lengths[i].seqlen, file.lengths[i - 1].seqlen));
  }
  return file;
}

// The same for settings of one sweep; empty for a method without a knob.
std::string sweep_text(const TunedSetting& setting) {
  const std::string& knob = setting.method->info().knob;
  return knob.empty() ? "" : setting.text({knob});
}

// A number whose differences are those of a knob: knobs go over decades, and end at 0.
double log_knob(const TunedSetting& setting) {
  const double value = setting.params->to_json()[setting.method->info().knob].get<double>();
  return std::log(std::max(value, 1e-9));
}

Json setting_json(const TunedSetting& setting) {
  Json json = {{"name", setting.method->info().name}};
  json.update(setting.params->to_json());
  return json;
}

// Settings of an earlier program may have parameters that this one lacks.
std::string other_version(const Json& document) {
  if (!document.is_object() || !document.contains("context")) return "";
  const Json& context = document["context"];
  if (!context.is_object() || !context.contains("git_commit")) return "";
  const Json& commit = context["git_commit"];
  if (commit == git_commit()) return "";
  return fmt::format(" (the file is of commit {}, this program of {})", json_text(commit),
                     git_commit());
}

struct LoadedFiles {
  struct Loaded {
    std::filesystem::file_time_type time;
    std::shared_ptr<const TunedFile> file;
  };
  std::mutex mutex;
  std::map<std::filesystem::path, Loaded> files;
};
LoadedFiles& loaded_files() {
  static LoadedFiles loaded;
  return loaded;
}

}  // namespace

std::string TunedSetting::text(const std::vector<std::string>& left_out) const {
  Json json = setting_json(*this);
  for (const std::string& name : left_out) json.erase(name);
  return json_text(json);
}

std::vector<int> TunedFile::heads_at(std::int64_t seqlen, int layer) const {
  const auto at = [layer](const TunedLength& length) -> const std::vector<int>& {
    return length.layers.at(static_cast<std::size_t>(layer));
  };
  const auto above =
      std::find_if(lengths.begin(), lengths.end(),
                   [seqlen](const TunedLength& length) { return length.seqlen >= seqlen; });
  if (above == lengths.end()) return at(lengths.back());
  if (above == lengths.begin() || above->seqlen == seqlen) return at(*above);
  const TunedLength& low = *(above - 1);
  const auto log = [](std::int64_t length) { return std::log(static_cast<double>(length)); };
  const double share = (log(seqlen) - log(low.seqlen)) / (log(above->seqlen) - log(low.seqlen));
  std::vector<std::string> sweeps;  // of the settings, once a head asks
  std::vector<int> heads;
  for (std::size_t head = 0; head < at(low).size(); ++head) {
    const int first = at(low)[head];
    const int second = at(*above)[head];
    int best = share < 0.5 ? first : second;
    const TunedSetting& from = settings[static_cast<std::size_t>(first)];
    const TunedSetting& to = settings[static_cast<std::size_t>(second)];
    const std::string sweep = first == second ? "" : sweep_text(from);
    if (!sweep.empty() && sweep == sweep_text(to)) {
      if (sweeps.empty()) std::ranges::transform(settings, std::back_inserter(sweeps), sweep_text);
      const double wanted = (1.0 - share) * log_knob(from) + share * log_knob(to);
      double nearest = std::numeric_limits<double>::infinity();
      for (std::size_t i = 0; i < settings.size(); ++i) {
        if (sweeps[i] != sweep) continue;
        const double distance = std::abs(log_knob(settings[i]) - wanted);
        if (distance < nearest) best = static_cast<int>(i);
        nearest = std::min(nearest, distance);
      }
    }
    heads.push_back(best);
  }
  return heads;
}

std::string weights_id(const std::filesystem::path& model_folder) {
  const std::filesystem::path index = model_folder / "model.safetensors.index.json";
  std::error_code ignored;
  if (!std::filesystem::exists(index, ignored)) {
    return file_identity(model_folder / "model.safetensors").hash;
  }
  // Of the shards: the identity of an index is that of its folder, whose config counts there.
  std::set<std::string> shards;
  try {
    const Json document = read_json_file(index);
    for (const auto& [tensor, shard] : document.at("weight_map").items()) {
      shards.insert(shard.get<std::string>());
    }
  } catch (const std::exception& error) {
    throw InputError(fmt::format("{}: no index of shards: {}", index.string(), error.what()));
  }
  std::string parts;
  for (const std::string& shard : shards) {
    parts += fmt::format("{}\n{}\n", shard, file_identity(model_folder / shard).hash);
  }
  return hash_hex(parts);
}

TunedFile read_tuned_file(const std::filesystem::path& path) {
  Json document;
  try {
    document = read_json_file(path);
    TunedFile file = parse(document, path.string());
    file.hash = file_identity(path).hash;
    return file;
  } catch (const ConfigError& error) {
    throw InputError(error.what() + other_version(document));
  }
}

std::shared_ptr<const TunedFile> load_tuned_file(const std::filesystem::path& path) {
  LoadedFiles& loaded = loaded_files();
  const std::lock_guard lock(loaded.mutex);
  const auto found = loaded.files.find(path);
  if (found != loaded.files.end()) return found->second.file;
  // Before the content: one that is newer is seen to have changed.
  std::error_code missing;  // reading it says so
  const auto time = std::filesystem::last_write_time(path, missing);
  auto file = std::make_shared<const TunedFile>(read_tuned_file(path));
  loaded.files[path] = {time, file};
  return file;
}

void renew_tuned_file(const std::filesystem::path& path) {
  LoadedFiles& loaded = loaded_files();
  const std::lock_guard lock(loaded.mutex);
  const auto found = loaded.files.find(path);
  if (found == loaded.files.end()) return;
  std::error_code missing;
  const auto time = std::filesystem::last_write_time(path, missing);
  if (missing || time != found->second.time) loaded.files.erase(found);
}

void write_tuned_file(const std::filesystem::path& path, const TunedFile& file) {
  const TunedModel& model = file.model;
  // One line a setting and a layer: what a reader looks for.
  const auto lines = [](const std::vector<Json>& items, const char* indent) {
    std::string text;
    for (const Json& item : items) {
      text += fmt::format("{}\n{}{}", text.empty() ? "" : ",", indent, json_text(item));
    }
    return text;
  };
  std::vector<Json> settings;
  for (const TunedSetting& setting : file.settings) settings.push_back(setting_json(setting));
  std::string lengths;
  for (const TunedLength& length : file.lengths) {
    const std::vector<Json> layers(length.layers.begin(), length.layers.end());
    lengths +=
        fmt::format("{}\n    {{\"seqlen\": {},\n     \"measured\": {},\n     \"layers\": [{}]}}",
                    lengths.empty() ? "" : ",", length.seqlen, json_text(length.measured),
                    lines(layers, "      "));
  }
  const Json model_json = {{"name", model.name},
                           {"id", model.id},
                           {"num_layers", model.num_layers},
                           {"num_q_heads", model.num_q_heads},
                           {"num_kv_heads", model.num_kv_heads},
                           {"head_dim", model.head_dim}};
  AtomicFile target(path);
  target.write(fmt::format(
      "{{\n  \"kind\": \"{}\",\n  \"schema_version\": {},\n  \"model\": {},\n  \"context\": {},\n"
      "  \"target\": {},\n  \"objective\": \"{}\",\n  \"settings\": [{}],\n  \"lengths\": "
      "[{}]\n}}\n",
      kKind, kVersion, json_text(model_json), json_text(file.context), json_text(file.target),
      file.objective, lines(settings, "    "), lengths));
  target.commit();
}

std::vector<int> kinds_of(const std::vector<TunedSetting>& settings) {
  std::map<std::string, int> first;  // setting of each kind
  std::vector<int> kinds;
  for (const TunedSetting& setting : settings) {
    const std::string text = setting.text(setting.method->info().params_by_head);
    kinds.push_back(first.try_emplace(text, static_cast<int>(kinds.size())).first->second);
  }
  return kinds;
}

std::vector<HeadSetting> group_heads(const std::vector<TunedSetting>& settings,
                                     const std::vector<int>& heads, int group_size) {
  // Of those that the heads take: a file may hold thousands.
  std::vector<int> numbers = heads;
  std::ranges::sort(numbers);
  numbers.erase(std::ranges::unique(numbers).begin(), numbers.end());
  std::vector<TunedSetting> taken;
  for (const int number : numbers) taken.push_back(settings.at(static_cast<std::size_t>(number)));
  const std::vector<int> kinds = kinds_of(taken);
  const auto kind_of = [&](int number) {
    return kinds[static_cast<std::size_t>(std::ranges::lower_bound(numbers, number) -
                                          numbers.begin())];
  };
  // Runs inside KV heads, then neighbouring whole KV heads.
  struct Run {
    HeadRange range;
    int kind = 0;
  };
  std::vector<Run> runs;
  for (int head = 0; head < static_cast<int>(heads.size()); ++head) {
    const int kind = kind_of(heads[static_cast<std::size_t>(head)]);
    if (head % group_size != 0 && runs.back().kind == kind) {
      ++runs.back().range.count;
    } else {
      runs.push_back({{head, 1}, kind});
    }
  }
  std::vector<Run> merged;
  for (const Run& run : runs) {
    const bool is_whole = run.range.count == group_size;
    if (is_whole && !merged.empty() && merged.back().kind == run.kind &&
        merged.back().range.count % group_size == 0) {
      merged.back().range.count += run.range.count;
    } else {
      merged.push_back(run);
    }
  }
  std::vector<HeadSetting> groups;
  for (const Run& run : merged) {
    const auto setting_of = [&](int head) -> const TunedSetting& {
      return settings[static_cast<std::size_t>(heads[static_cast<std::size_t>(head)])];
    };
    const TunedSetting& first = setting_of(run.range.first);
    HeadSetting group = {.q_heads = run.range, .method = first.method, .params = first.params};
    bool alike = true;
    for (int head = run.range.first; head < run.range.first + run.range.count; ++head) {
      const TunedSetting& own = setting_of(head);
      alike = alike && own == first;
      group.head_params.push_back(*own.params);
    }
    if (alike) group.head_params.clear();
    groups.push_back(std::move(group));
  }
  return groups;
}

}  // namespace s2o
