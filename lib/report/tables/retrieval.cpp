// Retrieval accuracy of `s2o prefill` on prompt files: one row per task, length and setting.
#include <fmt/format.h>

#include "lib/core/error.h"
#include "lib/report/paper_table.h"
#include "lib/report/retrieval_cells.h"

namespace s2o {
namespace {

// Null where dense was not run.
ReportCell flag_cell(const RetrievalCell* dense, bool value) {
  if (dense == nullptr) return missing_cell();
  return {value ? "yes" : "", value};
}

// One number a column, for programs.
ReportTable long_table(const std::vector<RetrievalCell>& cells) {
  ReportTable data{"retrieval",
                   "Teacher-forced retrieval, by task, length and setting",
                   {{"model", ""},
                    {"task", ""},
                    {"seqlen", ""},
                    {"method", ""},
                    {"samples", ""},
                    {"exact", ""},
                    {"exact_low", ""},
                    {"exact_high", ""},
                    {"dense_fails", ""},
                    {"above_dense", ""},
                    {"answer_tokens", ""},
                    {"token_accuracy", ""},
                    {"token_accuracy_low", ""},
                    {"token_accuracy_high", ""},
                    {"compute_density", ""},
                    {"kl_from_dense", ""},
                    {"time_to_first_token_ms", ""}},
                   {},
                   {}};
  for (const RetrievalCell& cell : cells) {
    const RetrievalCell* dense = dense_cell(cells, cell);
    data.rows.push_back({text_cell(cell.model), text_cell(cell.task), integer_cell(cell.seqlen),
                         text_cell(cell.label), integer_cell(cell.exact.trials),
                         number_cell(cell.exact.value), number_cell(cell.exact.low),
                         number_cell(cell.exact.high),
                         flag_cell(dense, dense != nullptr && dense_fails(*dense)),
                         flag_cell(dense, dense != nullptr && is_above_dense(cell, *dense)),
                         integer_cell(cell.tokens.trials), number_cell(cell.tokens.value),
                         number_cell(cell.tokens.low), number_cell(cell.tokens.high),
                         number_cell(cell.compute_density), number_cell(cell.kl_from_dense),
                         number_cell(cell.time_to_first_token_ms)});
  }
  return data;
}

Report build_retrieval(const ResultTable& table, const MatchOptions& options) {
  const std::vector<RetrievalCell> cells = retrieval_cells(table, options.curves);
  if (cells.empty()) {
    throw ConfigError(fmt::format(
        "the results hold no scored prompts ({} rows); run `s2o prefill` on a prompt file",
        table.rows.size()));
  }
  ReportTable data = long_table(cells);
  ReportTable view = retrieval_table(cells);
  data.notes = view.notes;
  return {{std::move(view)}, {std::move(data)}};
}

}  // namespace

const PaperTable& table_retrieval() {
  static const PaperTable table{"retrieval",
                                "Retrieval accuracy by task, length and setting, with counts and "
                                "Wilson intervals (s2o prefill)",
                                build_retrieval};
  return table;
}

}  // namespace s2o
