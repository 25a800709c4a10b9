// What a tuning run has measured, on disk line by line, so that an interrupted run goes on.
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "lib/prefill/prefill_backend.h"

namespace s2o {

// [settings, num_q_heads] of one layer.
using LayerProbes = std::vector<std::vector<HeadProbe>>;

class TuneJournal {
 public:
  // Starts a new file, or with `resume` takes what one with the same `header` holds. ConfigError
  // when that was written by other options, or the file cannot be written.
  TuneJournal(std::filesystem::path file, const nlohmann::ordered_json& header, bool resume);

  const LayerProbes* probes(std::int64_t seqlen, std::size_t text, int layer) const;
  void add_probes(std::int64_t seqlen, std::size_t text, int layer, LayerProbes probes);
  // KL of the model with this layer alone sparse, by the relative squared error of its output.
  std::optional<double> effect(int layer) const;
  void add_effect(int layer, double effect);

  // The result is written: the file goes.
  void remove();

 private:
  struct Place {
    std::int64_t seqlen = 0;
    std::size_t text = 0;
    int layer = 0;
    auto operator<=>(const Place&) const = default;
  };
  void take(const nlohmann::ordered_json& line);
  void append(const nlohmann::ordered_json& line) const;

  std::filesystem::path file_;
  std::map<Place, LayerProbes> probes_;
  std::map<int, double> effects_;
};

}  // namespace s2o
