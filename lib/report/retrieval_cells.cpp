#include "lib/report/retrieval_cells.h"

#include <fmt/format.h>

#include <algorithm>
#include <map>
#include <set>

namespace s2o {
namespace {

// The score of one setting on the samples of one task.
std::optional<RetrievalCell> make_cell(const Setting& setting) {
  double exact = 0.0;
  double correct = 0.0;
  double tokens = 0.0;
  std::int64_t samples = 0;
  for (const ResultRow* row : setting.rows) {
    const std::optional<double> match = row_metric(*row, "exact_match");
    if (!match) continue;
    ++samples;
    exact += *match;
    correct += row_metric(*row, "answer_correct").value_or(0.0);
    tokens += row_metric(*row, "answer_tokens").value_or(0.0);
  }
  if (samples == 0 || tokens < 1.0) return std::nullopt;
  const ResultRow& first = *setting.rows.front();
  return RetrievalCell{.task = first.prefill.task,
                       .seqlen = setting.seqlen,
                       .model = first.prefill.model,
                       .label = setting.full_label(),
                       .exact = wilson_interval(static_cast<std::int64_t>(exact), samples),
                       .tokens = wilson_interval(static_cast<std::int64_t>(correct),
                                                 static_cast<std::int64_t>(tokens)),
                       .compute_density = mean_metric(setting, "compute_density"),
                       .time_to_first_token_ms = mean_metric(setting, "time_to_first_token_ms"),
                       .kl_from_dense = mean_metric(setting, "kl_from_dense")};
}

}  // namespace

std::vector<RetrievalCell> retrieval_cells(const ResultTable& table, const CurveOptions& options) {
  // Tasks and models are no part of a setting: each has its own.
  std::map<std::pair<std::string, std::string>, ResultTable> parts;
  for (const ResultRow& row : table.rows) {
    if (row.kind != RowKind::kPrefill || row.prefill.task.empty()) continue;
    parts[{row.prefill.model, row.prefill.task}].rows.push_back(row);
  }
  std::vector<RetrievalCell> cells;
  for (const auto& [key, part] : parts) {
    for (const Setting& setting : group_settings(part, options)) {
      if (std::optional<RetrievalCell> cell = make_cell(setting)) cells.push_back(std::move(*cell));
    }
  }
  return cells;
}

ReportTable retrieval_table(const std::vector<RetrievalCell>& cells) {
  ReportTable table{"retrieval",
                    "Teacher-forced retrieval, by task, length and setting",
                    {{"task", "", true},
                     {"seqlen", ""},
                     {"method", "", true},
                     {"samples", ""},
                     {"exact [95 %]", ""},
                     {"answer tokens", ""},
                     {"token accuracy [95 %]", ""},
                     {"compute_density", "", false, true},
                     {"kl_from_dense", "", false, true},
                     {"time_to_first_token_ms", "", false, true}},
                    {},
                    {}};
  for (const RetrievalCell& cell : cells) {
    table.rows.push_back({text_cell(cell.task), integer_cell(cell.seqlen), text_cell(cell.label),
                          integer_cell(cell.exact.trials), text_cell(proportion_text(cell.exact)),
                          integer_cell(cell.tokens.trials), text_cell(proportion_text(cell.tokens)),
                          fixed_cell(cell.compute_density, 3), number_cell(cell.kl_from_dense),
                          number_cell(cell.time_to_first_token_ms, 4)});
  }
  table.notes = {
      "exact: samples of which every answer token has the largest logit, all tokens before it "
      "given "
      "(teacher forcing); token accuracy: the same by token. Brackets: Wilson score intervals. "
      "Tokens of one sample depend on each other, so the interval of the token accuracy is too "
      "narrow."};
  return table;
}

}  // namespace s2o
