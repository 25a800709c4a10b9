#include "lib/report/retrieval_cells.h"

#include <fmt/format.h>

#include <algorithm>
#include <map>
#include <set>
#include <utility>

namespace s2o {
namespace {

std::optional<double> sum(std::optional<double> a, std::optional<double> b) {
  if (!a || !b) return std::nullopt;
  return *a + *b;
}

// What a reader has to know before comparing a cell.
std::string remark_on(const RetrievalCell& cell, const RetrievalCell* dense) {
  if (dense == nullptr) return "no dense";
  if (dense_fails(*dense)) return "dense fails";
  return is_above_dense(cell, *dense) ? "above dense" : "";
}

// The score of one setting on the samples of one task.
std::optional<RetrievalCell> make_cell(const Setting& setting) {
  double exact = 0.0;
  double correct = 0.0;
  double tokens = 0.0;
  std::int64_t samples = 0;
  std::map<std::string, bool> exact_by_prompt;
  for (const ResultRow* row : setting.rows) {
    const std::optional<double> match = row_metric(*row, "exact_match");
    if (!match) continue;
    ++samples;
    exact += *match;
    exact_by_prompt[row->input] = *match > 0.0;
    correct += row_metric(*row, "answer_correct").value_or(0.0);
    tokens += row_metric(*row, "answer_tokens").value_or(0.0);
  }
  if (samples == 0 || tokens < 1.0) return std::nullopt;
  const ResultRow& first = *setting.rows.front();
  return RetrievalCell{.task = first.prefill.task,
                       .seqlen = setting.seqlen,
                       .model = first.prefill.model,
                       .method = setting.method,
                       .params = setting.params,
                       .label = setting.full_label(),
                       .backend = setting.backend,
                       .kernel = setting.kernel,
                       .exact = wilson_interval(static_cast<std::int64_t>(exact), samples),
                       .exact_by_prompt = std::move(exact_by_prompt),
                       .tokens = wilson_interval(static_cast<std::int64_t>(correct),
                                                 static_cast<std::int64_t>(tokens)),
                       .compute_density = mean_metric(setting, "compute_density"),
                       .time_to_first_token_ms = mean_metric(setting, "time_to_first_token_ms"),
                       .attention_and_planning_ms = sum(mean_metric(setting, "attention_ms"),
                                                        mean_metric(setting, "planning_ms")),
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
    for (const Setting& setting : group_settings(part, RowKind::kPrefill, options)) {
      if (std::optional<RetrievalCell> cell = make_cell(setting)) cells.push_back(std::move(*cell));
    }
  }
  return cells;
}

const RetrievalCell* dense_cell(const std::vector<RetrievalCell>& cells,
                                const RetrievalCell& cell) {
  const auto found = std::find_if(cells.begin(), cells.end(), [&cell](const RetrievalCell& other) {
    return is_dense_reference(other.method, other.params) && other.task == cell.task &&
           other.model == cell.model && other.seqlen == cell.seqlen &&
           other.backend == cell.backend;
  });
  return found == cells.end() ? nullptr : &*found;
}

bool dense_fails(const RetrievalCell& dense) { return dense.exact.value < 0.5; }

std::optional<double> accuracy_lost(const RetrievalCell& cell, const RetrievalCell& dense) {
  int lost = 0;
  int prompts = 0;
  for (const auto& [prompt, is_exact] : cell.exact_by_prompt) {
    const auto found = dense.exact_by_prompt.find(prompt);
    if (found == dense.exact_by_prompt.end()) continue;
    ++prompts;
    lost += static_cast<int>(found->second) - static_cast<int>(is_exact);
  }
  if (prompts == 0) return std::nullopt;
  return static_cast<double>(lost) / prompts;
}

bool is_above_dense(const RetrievalCell& cell, const RetrievalCell& dense) {
  return cell.exact.value > dense.exact.high;
}

ReportTable retrieval_table(const std::vector<RetrievalCell>& cells) {
  ReportTable table{"retrieval",
                    "Teacher-forced retrieval, by task, length and setting",
                    {{"task", "", true},
                     {"seqlen", ""},
                     {"method", "", true},
                     {"samples", ""},
                     {"exact [95 %]", ""},
                     {"remark", "", true},
                     {"answer tokens", ""},
                     {"token accuracy [95 %]", ""},
                     {"compute_density", "", false, true},
                     {"kl_from_dense", "", false, true},
                     {"time_to_first_token_ms", "", false, true}},
                    {},
                    {}};
  const bool many_models =
      std::any_of(cells.begin(), cells.end(),
                  [&cells](const RetrievalCell& cell) { return cell.model != cells[0].model; });
  if (many_models) table.columns.insert(table.columns.begin(), {"model", "", true});
  for (const RetrievalCell& cell : cells) {
    table.rows.push_back({text_cell(cell.task), integer_cell(cell.seqlen), text_cell(cell.label),
                          integer_cell(cell.exact.trials), text_cell(proportion_text(cell.exact)),
                          text_cell(remark_on(cell, dense_cell(cells, cell))),
                          integer_cell(cell.tokens.trials), text_cell(proportion_text(cell.tokens)),
                          fixed_cell(cell.compute_density, 3), number_cell(cell.kl_from_dense),
                          number_cell(cell.time_to_first_token_ms, 4)});
    std::vector<ReportCell>& row = table.rows.back();
    if (many_models) row.insert(row.begin(), text_cell(cell.model));
  }
  table.notes = {
      "exact: samples of which every answer token has the largest logit, all tokens before it "
      "given "
      "(teacher forcing); token accuracy: the same by token. Brackets: Wilson score intervals. "
      "Tokens of one sample depend on each other, so the interval of the token accuracy is too "
      "narrow. Remark: \"dense fails\": dense attention answers fewer than half of the prompts, so "
      "the task says little about a method; \"above dense\": beyond the interval of dense, to be "
      "explained before it is believed."};
  return table;
}

}  // namespace s2o
