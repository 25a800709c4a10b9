#include "lib/tune/tune_options.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <set>
#include <utility>

#include "lib/core/error.h"
#include "lib/core/printable.h"
#include "lib/core/strict_json.h"
#include "lib/eval/cells.h"

namespace s2o {
namespace {

using Json = nlohmann::ordered_json;

constexpr std::array kTargetNames = {"loss", "relative_l2", "mass"};

// A target of mass is about keys that are visited, not about what stands in for the others.
void leave_out_compensation(const MethodInfo& info, const std::string& path, Json& entry) {
  constexpr const char* kName = "compensation";
  if (std::ranges::find(info.params, kName, &ParamSpec::name) == info.params.end()) return;
  if (!entry.contains(kName)) entry[kName] = "none";
  if (entry[kName] != "none") {
    throw ConfigError(
        fmt::format("{}: compensation: found {}, expected none: --target mass counts visited keys",
                    path, json_text(entry[kName])));
  }
}

}  // namespace

const char* target_name(TuneTarget target) {
  return kTargetNames[static_cast<std::size_t>(target)];
}

const TuneOptions& checked_options(const TuneOptions& options) {
  if (options.seqlens.empty()) throw ConfigError("--seqlen: expected at least one length");
  if (options.tokens.empty()) throw ConfigError("--tokens: expected at least one file");
  if (options.by != "best" && options.by != "head" && options.by != "layer" &&
      options.by != "model") {
    throw ConfigError(
        fmt::format("--by: found '{}', expected best, head, layer or model", options.by));
  }
  if (options.objective != "time" && options.objective != "density") {
    throw ConfigError(
        fmt::format("--objective: found '{}', expected time or density", options.objective));
  }
  return options;
}

std::vector<TunedSetting> settings_to_try(const TuneOptions& options) {
  const Method& dense = find_method("dense");
  std::vector<TunedSetting> settings = {
      {&dense, std::make_shared<const ParamSet>(dense.info().params)}};
  std::set<std::string> known = {settings.front().text()};
  for (const std::string& text : options.methods) {
    const std::string path = "--method " + text;
    Json entry = {{"name", text}};
    if (text.starts_with("{")) {
      try {
        entry = parse_strict_json(text);
      } catch (const JsonTextError& error) {
        throw ConfigError(fmt::format("{}: {}", path, error.what()));
      }
    }
    if (!entry.contains("name") || !entry["name"].is_string()) {
      throw ConfigError(path + ": expected a method, or {\"name\": ..., parameters}");
    }
    const Method& method = find_method_at(entry["name"].get<std::string>(), path);
    const MethodInfo& info = method.info();
    if (&method == &find_method("tuned") || info.is_oracle) {
      throw ConfigError(fmt::format("{}: {} cannot be tuned", path, info.name));
    }
    if (!info.knob.empty() && !entry.contains(info.knob)) entry[info.knob] = info.knob_sweep;
    if (options.target == TuneTarget::kMass) leave_out_compensation(info, path, entry);
    for (ParamSet& params : expand_settings(method, entry, path)) {
      TunedSetting setting = {&method, std::make_shared<const ParamSet>(std::move(params))};
      if (known.insert(setting.text()).second) settings.push_back(std::move(setting));
    }
  }
  if (settings.size() == 1) throw ConfigError("--method: expected one that is not dense");
  return settings;
}

void parse_tune_target(const std::string& text, const std::string& path, TuneOptions& options) {
  const std::size_t sign = text.find('=');
  const std::string name = text.substr(0, sign);
  const auto known = std::ranges::find(kTargetNames, name);
  const char* const begin =
      text.data() + std::min(text.size(), sign == std::string::npos ? text.size() : sign + 1);
  const char* const end = text.data() + text.size();
  const auto parsed = std::from_chars(begin, end, options.value);
  const double most = name == "loss" ? 100.0 : 1.0;
  if (known == kTargetNames.end() || begin == end || parsed.ec != std::errc() ||
      parsed.ptr != end || !(options.value > 0.0 && options.value <= most)) {
    throw ConfigError(
        fmt::format("{}: found '{}', expected loss=NATS (above 0, at most 100), relative_l2=SHARE "
                    "or mass=SHARE "
                    "(above 0, at most 1), such as loss=0.01",
                    path, text));
  }
  options.target = static_cast<TuneTarget>(known - kTargetNames.begin());
}

}  // namespace s2o
