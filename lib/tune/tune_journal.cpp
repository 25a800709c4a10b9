#include "lib/tune/tune_journal.h"

#include <fmt/format.h>

#include <algorithm>
#include <string_view>
#include <system_error>
#include <utility>

#include "lib/config/json_reader.h"
#include "lib/core/error.h"
#include "lib/core/log.h"
#include "lib/core/printable.h"
#include "lib/core/regular_file.h"
#include "lib/core/strict_json.h"
#include "lib/core/text.h"

namespace s2o {
namespace {

using Json = nlohmann::ordered_json;

// The numbers of a probe, in this order.
constexpr double HeadProbe::*kNumbers[] = {
    &HeadProbe::plan_ms,   &HeadProbe::attention_ms, &HeadProbe::alone_ms,    &HeadProbe::error,
    &HeadProbe::reference, &HeadProbe::mass,         &HeadProbe::pair_density};

// Of any of them; sums of squares stay finite, too.
constexpr double kLargest = 1e100;

bool is_measured(double value) { return value >= 0.0 && value <= kLargest; }

// Two runs must not mix what they measure: the second one ends before it begins.
LineFile open_alone(const std::filesystem::path& file) {
  LineFile lines(file, LineFile::Open::kCreate);
  if (!lines.lock()) {
    throw ConfigError(fmt::format(
        "{}: another run is writing into it, expected an --out of its own", file.string()));
  }
  return lines;
}

// What a run of another kind found and this one expects: "commit: found "a", expected "b"", ...
std::string differences(const Json& found, const Json& expected) {
  if (!found.is_object()) return "found " + json_text(found);
  std::vector<std::string> lines;
  for (const auto& [key, value] : expected.items()) {
    const Json other = found.contains(key) ? found[key] : Json();
    if (other == value) continue;
    lines.push_back(
        fmt::format("{}: found {}, expected {}", key, json_text(other), json_text(value)));
  }
  return join(lines);
}

}  // namespace

TuneJournal::TuneJournal(std::filesystem::path file, const Json& header, std::size_t num_q_heads,
                         bool resume)
    : num_q_heads_(num_q_heads), lines_(open_alone(file)) {
  std::string text = read_whole_file(file);
  if (!resume && std::ranges::count(text, '\n') > 1) {
    const std::string previous = file.string() + ".previous";
    std::error_code error;
    std::filesystem::rename(file, previous, error);
    if (error) {
      throw ConfigError(
          fmt::format("{}: cannot be renamed to {}: {}", file.string(), previous, error.message()));
    }
    lines_ = open_alone(file);
  }
  if (!resume) text.clear();
  std::size_t number = 0;
  std::size_t begin = 0;
  for (std::size_t end = 0; (end = text.find('\n', begin)) != std::string::npos; begin = end + 1) {
    const std::string path = fmt::format("{}: line {}: ", file.string(), ++number);
    try {
      const Json read = parse_strict_json(std::string_view(text).substr(begin, end - begin));
      if (number > 1) {
        take(read, path);
      } else if (read != header) {
        throw ConfigError(
            fmt::format("{}: of another model, text, machine or version; run without --resume: {}",
                        file.string(), differences(read, header)));
      }
    } catch (const JsonTextError& error) {
      throw InputError(path + error.what());
    }
  }
  // A line that a crash cut off has no end, and is measured again.
  lines_.truncate(begin);
  if (number == 0) lines_.append(json_text(header));
  if (number > 1) {
    log_info("{}: {} measurements are there already", file.string(), number - 1);
  }
}

void TuneJournal::take(const Json& line, const std::string& path) try {
  constexpr int kMaxLayer = 1 << 20;
  const JsonReader reader(line, path, {"seqlen", "text", "layer", "setting", "heads", "effect"});
  const auto layer = static_cast<int>(reader.get_int("layer", {}, 0, kMaxLayer));
  const std::int64_t seqlen = reader.get_int("seqlen", {}, 1);
  if (reader.has("effect")) {
    effects_[{seqlen, layer}] = reader.get_real("effect", {}, 0.0, kLargest);
    return;
  }
  const Json& lines = reader.at("heads");
  std::vector<HeadProbe> heads;
  for (const Json& numbers : lines) {
    HeadProbe& probe = heads.emplace_back();
    for (std::size_t i = 0; i < std::size(kNumbers); ++i) {
      const bool is_number = numbers.is_array() && numbers.size() == std::size(kNumbers) &&
                             numbers[i].is_number() && is_measured(numbers[i].get<double>());
      if (!is_number) {
        throw_wrong_json(
            numbers, reader.path_of("heads"),
            fmt::format("lists of {} numbers in [0, {}]", std::size(kNumbers), kLargest));
      }
      probe.*kNumbers[i] = numbers[i].get<double>();
    }
  }
  if (heads.size() != num_q_heads_) {
    throw_wrong_json(lines, reader.path_of("heads"), fmt::format("{} heads", num_q_heads_));
  }
  probes_[{seqlen, static_cast<std::size_t>(reader.get_int("text", {}, 0)), layer,
           reader.get_string("setting")}] = std::move(heads);
} catch (const ConfigError& error) {
  throw InputError(error.what());
}

void TuneJournal::append(const Json& line) { lines_.append(json_text(line)); }

const std::vector<HeadProbe>* TuneJournal::probes(std::int64_t seqlen, std::size_t text, int layer,
                                                  const std::string& setting) const {
  const auto found = probes_.find({seqlen, text, layer, setting});
  return found == probes_.end() ? nullptr : &found->second;
}

void TuneJournal::add_probes(std::int64_t seqlen, std::size_t text, int layer,
                             const std::string& setting, std::vector<HeadProbe> heads) {
  Json lines = Json::array();
  for (const HeadProbe& head : heads) {
    Json& numbers = lines.emplace_back(Json::array());
    for (const auto number : kNumbers) {
      if (!is_measured(head.*number)) {
        throw Error(fmt::format(
            "layer {}, head {}, {} tokens, {}: measured {}, expected a number in [0, {}]", layer,
            lines.size() - 1, seqlen, setting, head.*number, kLargest));
      }
      numbers.push_back(head.*number);
    }
  }
  append({{"seqlen", seqlen},
          {"text", text},
          {"layer", layer},
          {"setting", setting},
          {"heads", lines}});
  probes_[{seqlen, text, layer, setting}] = std::move(heads);
}

std::optional<double> TuneJournal::effect(std::int64_t seqlen, int layer) const {
  const auto found = effects_.find({seqlen, layer});
  return found == effects_.end() ? std::nullopt : std::optional(found->second);
}

void TuneJournal::add_effect(std::int64_t seqlen, int layer, double effect) {
  if (!is_measured(effect)) {
    throw Error(fmt::format("layer {}, {} tokens: an effect of {}, expected a number in [0, {}]",
                            layer, seqlen, effect, kLargest));
  }
  append({{"seqlen", seqlen}, {"layer", layer}, {"effect", effect}});
  effects_[{seqlen, layer}] = effect;
}

}  // namespace s2o
