// The rows of an evaluation as `s2o eval` prints them.
#pragma once

#include <string>
#include <vector>

#include "lib/eval/result_table.h"
#include "lib/report/report_table.h"

namespace s2o {

inline const std::vector<std::string> kEvalFormats = {"text", "json", "csv", "markdown"};

// text: one block per input, layer and seqlen, with the columns that matter most; markdown: the
// same columns in one table; csv: all columns of results.json; json: results.json itself.
std::string render_results(const ResultTable& table, ReportFormat format);

}  // namespace s2o
