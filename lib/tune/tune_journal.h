// What tuning runs have measured, on disk line by line: an interrupted run goes on, and another
// target or choice of methods measures only what is new.
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "lib/core/line_file.h"
#include "lib/prefill/prefill_backend.h"

namespace s2o {

class TuneJournal {
 public:
  // Starts a new file and keeps one that is there as "<file>.previous", or with `resume` takes what
  // one with the same `header` holds. ConfigError when that is of another model, text or machine,
  // another process has it, or it cannot be written; InputError for a line that no run has written.
  TuneJournal(std::filesystem::path file, const nlohmann::ordered_json& header,
              std::size_t num_q_heads, bool resume);

  // A setting, as text, on the heads of a layer, [num_q_heads]. Null: not measured.
  const std::vector<HeadProbe>* probes(std::int64_t seqlen, std::size_t text, int layer,
                                       const std::string& setting) const;
  // Error when a number is not finite, or negative.
  void add_probes(std::int64_t seqlen, std::size_t text, int layer, const std::string& setting,
                  std::vector<HeadProbe> heads);
  // KL of the model with this layer alone sparse, by the relative squared error of its output.
  std::optional<double> effect(std::int64_t seqlen, int layer) const;
  void add_effect(std::int64_t seqlen, int layer, double effect);

 private:
  struct Place {
    std::int64_t seqlen = 0;
    std::size_t text = 0;
    int layer = 0;
    std::string setting;
    auto operator<=>(const Place&) const = default;
  };
  void take(const nlohmann::ordered_json& line, const std::string& path);
  void append(const nlohmann::ordered_json& line);

  std::size_t num_q_heads_;
  LineFile lines_;
  std::map<Place, std::vector<HeadProbe>> probes_;
  std::map<std::pair<std::int64_t, int>, double> effects_;
};

}  // namespace s2o
