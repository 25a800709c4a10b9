#include "lib/report/eval_table.h"

#include <fmt/format.h>

#include "lib/metrics/metric.h"
#include "lib/report/results_json.h"
#include "lib/report/row_tables.h"
#include "lib/report/settings.h"

namespace s2o {
namespace {

std::vector<ReportColumn> metric_headers() {
  std::vector<ReportColumn> columns;
  for (const MetricColumn& column : metric_columns()) {
    if (column.in_text_table) columns.push_back({.name = column.name, .wrapped = true});
  }
  return columns;
}

std::vector<ReportCell> metric_cells(const ResultRow& row) {
  std::vector<ReportCell> cells;
  for (const MetricColumn& column : metric_columns()) {
    if (column.in_text_table) cells.push_back(number_cell(row_metric(row, column.name)));
  }
  return cells;
}

ReportTable make_block(const ResultRow& row) {
  ReportTable block;
  block.title = place_text(row);
  if (row.num_q_heads > 0) {
    block.title += fmt::format(" ({} query heads, {} KV heads, head_dim {}; {})", row.num_q_heads,
                               row.num_kv_heads, row.head_dim, row.kernel);
  }
  block.columns = {{.name = "method", .left_aligned = true},
                   {.name = "params", .left_aligned = true}};
  for (const ReportColumn& column : metric_headers()) block.columns.push_back(column);
  return block;
}

std::vector<ReportTable> text_blocks(const ResultTable& table) {
  const ParamColumns params(table);
  std::vector<ReportTable> blocks;
  const ResultRow* previous = nullptr;
  for (const ResultRow& row : table.rows) {
    if (previous == nullptr || place_text(*previous) != place_text(row)) {
      blocks.push_back(make_block(row));
    }
    previous = &row;
    std::vector<ReportCell> cells = {text_cell(row.method), text_cell(params.text(row))};
    for (ReportCell& cell : metric_cells(row)) cells.push_back(std::move(cell));
    blocks.back().rows.push_back(std::move(cells));
  }
  if (!blocks.empty()) blocks.back().notes = table_notes(table, params);
  return blocks;
}

ReportTable markdown_table(const ResultTable& table) {
  const ParamColumns params(table);
  ReportTable view;
  view.columns = {{.name = "input", .left_aligned = true},
                  {.name = "layer"},
                  {.name = "seqlen"},
                  {.name = "method", .left_aligned = true},
                  {.name = "params", .left_aligned = true}};
  for (const ReportColumn& column : metric_headers()) view.columns.push_back(column);
  for (const ResultRow& row : table.rows) {
    std::vector<ReportCell> cells = {text_cell(row.input), integer_cell(row.layer),
                                     integer_cell(row.seqlen), text_cell(row.method),
                                     text_cell(params.text(row))};
    for (ReportCell& cell : metric_cells(row)) cells.push_back(std::move(cell));
    view.rows.push_back(std::move(cells));
  }
  view.notes = table_notes(table, params);
  return view;
}

}  // namespace

std::string render_results(const ResultTable& table, ReportFormat format) {
  if (format == ReportFormat::kJson) return results_to_json(table);
  if (format == ReportFormat::kCsv) return render_report({.view = {csv_table(table)}}, format);
  if (format == ReportFormat::kText) return render_report({.view = text_blocks(table)}, format);
  return render_report({.view = {markdown_table(table)}}, format);
}

}  // namespace s2o
