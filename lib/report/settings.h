// Result rows grouped by method setting, for tables that show settings as they were run.
#pragma once

#include <set>
#include <string>
#include <vector>

#include "lib/report/curves.h"

namespace s2o {

// All rows of one setting (every parameter fixed, the knob too) at one sequence length on one
// backend: one row per input and layer.
struct Setting {
  std::string label;  // as in MethodCurves: without the knob
  std::string method;
  nlohmann::ordered_json params;
  std::string knob;                   // "" = none
  nlohmann::ordered_json knob_value;  // null without a knob
  std::int64_t seqlen = 0;
  std::string backend;
  std::string kernel;
  int gpus = 1;                        // that share a prefill
  int rank = 0;                        // of the method
  std::vector<const ResultRow*> rows;  // point into the table

  // "s2o segment_size=256 tau=0.01"
  std::string full_label() const;
};

// Rows of another kind, whose columns mean other things, and rows with an error are left out.
// Ordered by seqlen, backend, methods.def, first appearance of the label, then from dense to
// sparse.
std::vector<Setting> group_settings(const ResultTable& table, RowKind kind,
                                    const CurveOptions& options);

// Over the rows that have the metric; empty when none has it.
std::optional<double> mean_metric(const Setting& setting, const std::string& metric);
// As above; 0 as soon as one value is 0.
std::optional<double> geometric_mean_metric(const Setting& setting, const std::string& metric);

// Dense attention of the stored numbers, with which others are compared; in 8 bits it is one of
// them.
inline bool is_dense_reference(const std::string& method, const nlohmann::ordered_json& params) {
  return method == "dense" && params.empty();
}

// The value of a metric column in a row, or empty.
std::optional<double> row_metric(const ResultRow& row, const std::string& metric);
// GPUs that shared the prefill of a row.
int gpus_of(const ResultRow& row);

// part / whole; empty without both or where whole is 0.
std::optional<double> share(std::optional<double> part, std::optional<double> whole);

// ConfigError when there is no setting at all: "the results hold no ... (N rows, M failed)".
void require_settings(const std::vector<Setting>& settings, const ResultTable& table,
                      const std::string& what);

// "layers 0,1,2,3; inputs tiny-llama/book", or of these settings.
std::string coverage_text(const std::set<int>& layers, const std::set<std::string>& inputs);
std::string coverage_text(const std::vector<Setting>& settings);

}  // namespace s2o
