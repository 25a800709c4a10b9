#include "lib/tune/tune_journal.h"

#include <fmt/format.h>

#include <fstream>
#include <utility>

#include "lib/core/error.h"
#include "lib/core/log.h"
#include "lib/core/printable.h"
#include "lib/core/strict_json.h"

namespace s2o {
namespace {

using Json = nlohmann::ordered_json;

// The numbers of a probe, in this order.
constexpr double HeadProbe::*kNumbers[] = {
    &HeadProbe::plan_ms,   &HeadProbe::attention_ms, &HeadProbe::alone_ms,    &HeadProbe::error,
    &HeadProbe::reference, &HeadProbe::mass,         &HeadProbe::pair_density};

}  // namespace

TuneJournal::TuneJournal(std::filesystem::path file, const Json& header, bool resume)
    : file_(std::move(file)) {
  std::vector<Json> lines;
  std::ifstream stream(file_);
  if (resume && stream) {
    std::size_t number = 0;
    for (std::string text; std::getline(stream, text);) {
      ++number;
      // A line that a crash cut off has no end.
      if (stream.eof()) break;
      try {
        lines.push_back(parse_strict_json(text));
      } catch (const JsonTextError& error) {
        throw InputError(fmt::format("{}: line {}: {}", file_.string(), number, error.what()));
      }
    }
    if (!lines.empty() && lines.front() != header) {
      throw ConfigError(
          fmt::format("{}: of another model, text, machine or version; run without --resume: {}",
                      file_.string(), json_text(lines.front())));
    }
  }
  stream.close();
  try {
    for (std::size_t i = 1; i < lines.size(); ++i) take(lines[i]);
  } catch (const nlohmann::json::exception& error) {
    throw InputError(fmt::format("{}: {}", file_.string(), error.what()));
  }
  std::ofstream begin(file_, std::ios::trunc);
  if (!begin) throw ConfigError(fmt::format("{}: cannot be written", file_.string()));
  begin.close();
  append(header);
  for (std::size_t i = 1; i < lines.size(); ++i) append(lines[i]);
  if (lines.size() > 1) {
    log_info("{}: {} measurements are there already", file_.string(), lines.size() - 1);
  }
}

void TuneJournal::take(const Json& line) {
  const int layer = line.at("layer").get<int>();
  if (line.contains("effect")) {
    effects_[layer] = line["effect"].get<double>();
    return;
  }
  std::vector<HeadProbe> heads;
  for (const Json& numbers : line.at("heads")) {
    HeadProbe& probe = heads.emplace_back();
    for (std::size_t i = 0; i < std::size(kNumbers); ++i) {
      probe.*kNumbers[i] = numbers.at(i).get<double>();
    }
  }
  probes_[{line.at("seqlen").get<std::int64_t>(), line.at("text").get<std::size_t>(), layer,
           line.at("setting").get<std::string>()}] = std::move(heads);
}

void TuneJournal::append(const Json& line) const {
  std::ofstream stream(file_, std::ios::app);
  stream << json_text(line) << '\n';
  if (!stream.flush()) {
    throw UnsupportedError(fmt::format("{}: writing failed; is the disk full?", file_.string()));
  }
}

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
    for (const auto number : kNumbers) numbers.push_back(head.*number);
  }
  append({{"seqlen", seqlen},
          {"text", text},
          {"layer", layer},
          {"setting", setting},
          {"heads", lines}});
  probes_[{seqlen, text, layer, setting}] = std::move(heads);
}

std::optional<double> TuneJournal::effect(int layer) const {
  const auto found = effects_.find(layer);
  return found == effects_.end() ? std::nullopt : std::optional(found->second);
}

void TuneJournal::add_effect(int layer, double effect) {
  append({{"layer", layer}, {"effect", effect}});
  effects_[layer] = effect;
}

}  // namespace s2o
