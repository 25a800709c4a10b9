// Rows of a prefill on prompts with a known answer, gathered by task, length and setting.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "lib/report/report_table.h"
#include "lib/report/settings.h"
#include "lib/report/wilson.h"

namespace s2o {

// All samples of one task at one length with one setting.
struct RetrievalCell {
  std::string task;
  std::int64_t seqlen = 0;
  std::string model;
  std::string label;  // "s2o tau=0.01"
  Proportion exact;   // samples whose whole answer was predicted
  Proportion tokens;  // answer tokens predicted; those of one sample depend on each other
  std::optional<double> compute_density;
  std::optional<double> time_to_first_token_ms;
  std::optional<double> kl_from_dense;  // over the rows that predict the answer
};

// Ordered by task, then as group_settings orders settings. Rows with an error, and rows without a
// score, are left out.
std::vector<RetrievalCell> retrieval_cells(const ResultTable& table, const CurveOptions& options);

// One row a cell, with what the intervals mean.
ReportTable retrieval_table(const std::vector<RetrievalCell>& cells);

}  // namespace s2o
