// Options that `s2o match` and `s2o table` share.
#pragma once

#include <CLI/CLI.hpp>
#include <filesystem>
#include <string>
#include <vector>

#include "lib/report/match.h"

namespace s2o {

struct ReportFlags {
  std::vector<std::filesystem::path> results;
  std::string format = "text";
  std::string reference = "s2o";
  std::string sparsity = "0.5,0.6,0.7,0.8,0.9,0.95";
  std::string errors = "auto";
  std::string unit = "auto";
  std::vector<std::string> knobs;
  bool by_family = false;
  int resamples = 2000;
  std::uint64_t seed = 0;
};

void add_report_options(CLI::App& command, ReportFlags& flags);

// ConfigError for a value that means nothing.
MatchOptions match_options(const ReportFlags& flags);

// --format of both commands.
inline const std::vector<std::string> kReportFormats = {"text", "json", "csv", "markdown", "latex"};

}  // namespace s2o
