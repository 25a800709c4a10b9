#include "lib/report/prefill_table.h"

#include <fmt/format.h>

#include <algorithm>
#include <set>

#include "lib/core/text.h"
#include "lib/prefill/columns.h"
#include "lib/report/results_json.h"
#include "lib/report/retrieval_cells.h"
#include "lib/report/row_tables.h"
#include "lib/report/settings.h"

namespace s2o {
namespace {

// Columns of a block: those of all its rows that hold at least one number.
std::vector<MetricColumn> used_columns(const std::vector<const ResultRow*>& rows) {
  std::vector<MetricColumn> columns;
  for (const MetricColumn& column : prefill_columns()) {
    const auto has = [&column](const ResultRow* row) {
      return row_metric(*row, column.name).has_value();
    };
    if (column.in_text_table && std::ranges::any_of(rows, has)) columns.push_back(column);
  }
  return columns;
}

ReportCell metric_cell(const ResultRow& row, const std::string& name) {
  const std::optional<double> value = row_metric(row, name);
  // Losses differ in the third decimal; three digits would hide it.
  return name == "held_out_loss" ? fixed_cell(value, 4) : number_cell(value);
}

std::vector<ReportCell> names_of(const ResultRow& row, const ParamColumns& params) {
  return {text_cell(row.method), text_cell(params.text(row))};
}

std::vector<ReportColumn> name_columns() {
  return {{.name = "method", .left_aligned = true}, {.name = "params", .left_aligned = true}};
}

// Times, density, loss and divergence of all settings on one prompt.
ReportTable prompt_block(const std::vector<const ResultRow*>& rows, const ParamColumns& params) {
  const ResultRow& first = *rows.front();
  ReportTable block{
      .title = fmt::format("{} ({}; {})", place_text(first), first.prefill.model, first.kernel),
      .columns = name_columns()};
  if (first.prefill.qkv != "model") block.title += ": latency composition, " + first.prefill.qkv;
  const std::vector<MetricColumn> columns = used_columns(rows);
  for (const MetricColumn& column : columns) {
    block.columns.push_back({.name = column.name, .wrapped = true});
  }
  for (const ResultRow* row : rows) {
    std::vector<ReportCell> cells = names_of(*row, params);
    for (const MetricColumn& column : columns) cells.push_back(metric_cell(*row, column.name));
    block.rows.push_back(std::move(cells));
  }
  return block;
}

// Held-out loss by where in the prompt the prediction was made; no rows with a single bucket.
ReportTable position_block(const std::vector<const ResultRow*>& rows, const ParamColumns& params) {
  ReportTable block{.title = "held-out loss by position, " + place_text(*rows.front()),
                    .columns = name_columns()};
  for (const ResultRow* row : rows) {
    const nlohmann::ordered_json& buckets = row->prefill.loss_by_position;
    if (!buckets.is_array() || buckets.size() < 2) continue;
    std::vector<ReportCell> cells = names_of(*row, params);
    const bool is_first = block.rows.empty();
    for (const nlohmann::ordered_json& bucket : buckets) {
      if (is_first) {
        block.columns.push_back({.name = fmt::format("{}-{}", bucket["begin"].get<std::int64_t>(),
                                                     bucket["end"].get<std::int64_t>() - 1)});
      }
      cells.push_back(fixed_cell(bucket["loss"].get<double>(), 4));
    }
    if (cells.size() == block.columns.size()) block.rows.push_back(std::move(cells));
  }
  return block;
}

// Rows in runs of one prompt.
std::vector<std::vector<const ResultRow*>> by_prompt(const ResultTable& table) {
  std::vector<std::vector<const ResultRow*>> groups;
  for (const ResultRow& row : table.rows) {
    if (!row.prefill.task.empty()) continue;
    if (groups.empty() || place_text(*groups.back().front()) != place_text(row)) {
      groups.emplace_back();
    }
    groups.back().push_back(&row);
  }
  return groups;
}

std::vector<ReportTable> view_of(const ResultTable& table) {
  const ParamColumns params(table);
  std::vector<ReportTable> blocks;
  for (const auto& rows : by_prompt(table)) {
    blocks.push_back(prompt_block(rows, params));
    ReportTable positions = position_block(rows, params);
    if (!positions.rows.empty()) blocks.push_back(std::move(positions));
  }
  const std::vector<RetrievalCell> cells = retrieval_cells(table, {});
  if (!cells.empty()) blocks.push_back(retrieval_table(cells));
  // Prompts with an answer that all failed have no table of their own to stand below.
  if (blocks.empty() && !table.rows.empty()) blocks.push_back({.title = "no prefill succeeded"});
  if (blocks.empty()) return blocks;
  std::vector<std::string>& notes = blocks.back().notes;
  for (std::string& note : table_notes(table, params)) notes.push_back(std::move(note));
  const std::string replay = replay_note(table);
  if (!replay.empty()) notes.push_back(replay);
  return blocks;
}

}  // namespace

std::string replay_note(const ResultTable& table) {
  std::set<std::string> sources;
  for (const ResultRow& row : table.rows) {
    if (row.kind == RowKind::kPrefill && row.prefill.qkv != "model") {
      sources.insert(row.prefill.qkv);
    }
  }
  if (sources.empty()) return "";
  return fmt::format(
      "Latency composition ({}): linear layers of the model's shape, attention on recorded or "
      "synthetic Q, K, V with their heads repeated. No accuracy can be read from it.",
      join({sources.begin(), sources.end()}, "; "));
}

std::string render_prefill_results(const ResultTable& table, ReportFormat format) {
  if (format == ReportFormat::kJson) return results_to_json(table);
  if (format == ReportFormat::kCsv) return render_report({.view = {csv_table(table)}}, format);
  return render_report({.view = view_of(table)}, format);
}

}  // namespace s2o
