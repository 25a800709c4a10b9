#include "lib/tune/tune_journal.h"

#include <fmt/format.h>

#include <cmath>
#include <fstream>
#include <system_error>
#include <utility>

#include "lib/config/json_reader.h"
#include "lib/core/atomic_file.h"
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

TuneJournal::TuneJournal(std::filesystem::path file, const Json& header, std::size_t num_q_heads,
                         bool resume)
    : file_(std::move(file)), num_q_heads_(num_q_heads) {
  std::error_code none;
  if (!resume) std::filesystem::rename(file_, file_.string() + ".previous", none);
  std::string text = json_text(header) + "\n";
  std::ifstream stream(file_);
  std::size_t number = 0;
  // A line that a crash cut off has no end.
  for (std::string line; resume && std::getline(stream, line) && !stream.eof();) {
    const std::string path = fmt::format("{}: line {}: ", file_.string(), ++number);
    try {
      const Json read = parse_strict_json(line);
      if (number > 1) {
        take(read, path);
        text += line + '\n';
      } else if (read != header) {
        throw ConfigError(
            fmt::format("{}: of another model, text, machine or version; run without --resume: {}",
                        file_.string(), json_text(read)));
      }
    } catch (const JsonTextError& error) {
      throw InputError(path + error.what());
    }
  }
  stream.close();
  // What was measured is there until all of it is there again.
  AtomicFile begin(file_);
  begin.write(text);
  begin.commit();
  if (number > 1) {
    log_info("{}: {} measurements are there already", file_.string(), number - 1);
  }
}

void TuneJournal::take(const Json& line, const std::string& path) try {
  constexpr int kMaxLayer = 1 << 20;
  const JsonReader reader(line, path, {"seqlen", "text", "layer", "setting", "heads", "effect"});
  const auto layer = static_cast<int>(reader.get_int("layer", {}, 0, kMaxLayer));
  const std::int64_t seqlen = reader.get_int("seqlen", {}, 1);
  if (reader.has("effect")) {
    effects_[{seqlen, layer}] = reader.get_real("effect");
    return;
  }
  const Json& lines = reader.at("heads");
  std::vector<HeadProbe> heads;
  for (const Json& numbers : lines) {
    HeadProbe& probe = heads.emplace_back();
    for (std::size_t i = 0; i < std::size(kNumbers); ++i) {
      const bool is_number =
          numbers.is_array() && numbers.size() == std::size(kNumbers) && numbers[i].is_number();
      if (!is_number) {
        throw_wrong_json(numbers, reader.path_of("heads"),
                         fmt::format("lists of {} numbers", std::size(kNumbers)));
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
    for (const auto number : kNumbers) {
      if (!std::isfinite(head.*number)) {
        throw Error(
            fmt::format("layer {}, head {}, {} tokens, {}: measured {}, expected a finite number",
                        layer, lines.size() - 1, seqlen, setting, head.*number));
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
  append({{"seqlen", seqlen}, {"layer", layer}, {"effect", effect}});
  effects_[{seqlen, layer}] = effect;
}

}  // namespace s2o
