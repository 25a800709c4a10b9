// Rows of a prefill on prompts with a known answer, gathered by task, length and setting.
#pragma once

#include <cstdint>
#include <map>
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
  std::string method;
  nlohmann::ordered_json params;
  std::string label;  // "s2o tau=0.01"
  std::string backend;
  std::string kernel;
  Proportion exact;  // samples whose whole answer was predicted
  std::map<std::string, bool> exact_by_prompt;
  Proportion tokens;  // answer tokens predicted; those of one sample depend on each other
  std::optional<double> compute_density;
  std::optional<double> time_to_first_token_ms;
  std::optional<double> attention_and_planning_ms;
  std::optional<double> kl_from_dense;  // over the rows that predict the answer
};

// Ordered by task, then as group_settings orders settings. Rows with an error, and rows without a
// score, are left out.
std::vector<RetrievalCell> retrieval_cells(const ResultTable& table, const CurveOptions& options);

// The cell of dense attention on the same task, length and model; null without one.
const RetrievalCell* dense_cell(const std::vector<RetrievalCell>& cells, const RetrievalCell& cell);
// The model itself answers fewer than half of the prompts: what a method does to such a task says
// little about the method.
bool dense_fails(const RetrievalCell& dense);
// Accuracy of dense minus that of the cell, over the prompts that both were scored on: after a run
// that was cut off they are not all. Empty where there are none.
std::optional<double> accuracy_lost(const RetrievalCell& cell, const RetrievalCell& dense);
// Above the Wilson interval of dense. Leaving keys out does not help a model that often: to be
// explained before it is believed.
bool is_above_dense(const RetrievalCell& cell, const RetrievalCell& dense);

// One row a cell, with what the intervals mean.
ReportTable retrieval_table(const std::vector<RetrievalCell>& cells);

}  // namespace s2o
