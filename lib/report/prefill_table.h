// The rows of a prefill as `s2o prefill` prints them.
#pragma once

#include <string>

#include "lib/eval/result_table.h"
#include "lib/report/report_table.h"

namespace s2o {

// text and markdown: one block per prompt without an answer (times, density, loss, divergence),
// the loss by position where there are several buckets, and one table of all prompts with an
// answer, by task, length and setting; csv: all columns of results.json; json: results.json itself.
std::string render_prefill_results(const ResultTable& table, ReportFormat format);

// What a reader must know of rows whose attention read a replay; "" for others.
std::string replay_note(const ResultTable& table);

}  // namespace s2o
