#include "lib/report/eval_table.h"

#include <fmt/format.h>

#include <algorithm>
#include <map>
#include <set>

#include "lib/core/text.h"
#include "lib/methods/method.h"
#include "lib/metrics/metric.h"
#include "lib/report/results_json.h"

namespace s2o {
namespace {

using Json = nlohmann::ordered_json;

constexpr std::size_t kMaxNamedSettings = 4;  // in one note

const MethodInfo* find_info(const std::string& method) {
  for (const Method* known : all_methods()) {
    if (known->info().name == method) return &known->info();
  }
  return nullptr;
}

std::string value_text(const Json& value) {
  return value.is_string() ? value.get<std::string>() : value.dump();
}

// Which parameters tell the rows of a method apart: its knob, and all that vary.
class ParamColumns {
 public:
  explicit ParamColumns(const ResultTable& table) {
    std::map<std::string, const Json*> first;
    for (const ResultRow& row : table.rows) {
      const Json& reference = *first.try_emplace(row.method, &row.params).first->second;
      std::set<std::string>& shown = shown_[row.method];
      if (const MethodInfo* info = find_info(row.method); info != nullptr) shown.insert(info->knob);
      for (const auto& [name, value] : row.params.items()) {
        if (!reference.contains(name) || reference[name] != value) shown.insert(name);
      }
    }
  }

  // "tau=0.01 segment_size=256"
  std::string text(const ResultRow& row) const {
    std::vector<std::string> parts;
    for (const auto& [name, value] : row.params.items()) {
      if (!shown_.at(row.method).contains(name)) continue;
      parts.push_back(fmt::format("{}={}", name, value_text(value)));
    }
    return join(parts, " ");
  }

  // "s2o: segment_size=256" for what all rows of a method share and its defaults do not say.
  std::vector<std::string> shared_notes(const ResultTable& table) const {
    std::vector<std::string> notes;
    std::set<std::string> done;
    for (const ResultRow& row : table.rows) {
      const MethodInfo* info = find_info(row.method);
      if (info == nullptr || !done.insert(row.method).second) continue;
      const Json defaults = ParamSet(info->params).to_json();
      std::vector<std::string> parts;
      for (const auto& [name, value] : row.params.items()) {
        const bool is_default = defaults.contains(name) && defaults[name] == value;
        if (is_default || shown_.at(row.method).contains(name)) continue;
        parts.push_back(fmt::format("{}={}", name, value_text(value)));
      }
      if (!parts.empty()) notes.push_back(fmt::format("{}: {}", row.method, join(parts)));
    }
    return notes;
  }

 private:
  std::map<std::string, std::set<std::string>> shown_;  // by method
};

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
    if (!column.in_text_table) continue;
    const auto found = row.metrics.find(column.name);
    cells.push_back(number_cell(found == row.metrics.end() ? std::nullopt : found->second));
  }
  return cells;
}

std::string place_text(const ResultRow& row) {
  return fmt::format("{}, layer {}, seqlen {}", row.input, row.layer, row.seqlen);
}

// "failed: s2o tau=0.1: <why>", one note for settings of an input that failed alike.
std::vector<std::string> failure_notes(const ResultTable& table, const ParamColumns& params) {
  std::vector<std::pair<std::string, std::vector<std::string>>> causes;
  for (const ResultRow& row : table.rows) {
    if (!row.error) continue;
    const std::string cause = fmt::format("on {}: {}", place_text(row), *row.error);
    if (causes.empty() || causes.back().first != cause) causes.push_back({cause, {}});
    const std::string setting = params.text(row);
    causes.back().second.push_back(row.method + (setting.empty() ? "" : " " + setting));
  }
  std::vector<std::string> notes;
  for (const auto& [cause, settings] : causes) {
    const std::string who = settings.size() > kMaxNamedSettings
                                ? fmt::format("{} settings", settings.size())
                                : join(settings);
    notes.push_back(fmt::format("failed: {} {}", who, cause));
  }
  return notes;
}

// What a reader has to know below the table.
std::vector<std::string> table_notes(const ResultTable& table, const ParamColumns& params) {
  std::vector<std::string> notes = failure_notes(table, params);
  for (std::string& note : params.shared_notes(table)) notes.push_back(std::move(note));
  return notes;
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

ReportTable csv_table(const ResultTable& table) {
  ReportTable data;
  for (const std::string& name : result_columns()) data.columns.push_back({.name = name});
  for (const ResultRow& row : table.rows) {
    const Json object = row_to_json(row);
    std::vector<ReportCell> cells;
    for (const ReportColumn& column : data.columns) cells.push_back({"", object[column.name]});
    data.rows.push_back(std::move(cells));
  }
  return data;
}

}  // namespace

std::string render_results(const ResultTable& table, ReportFormat format) {
  switch (format) {
    case ReportFormat::kJson:
      return results_to_json(table);
    case ReportFormat::kCsv:
      return render_report({.view = {csv_table(table)}}, format);
    case ReportFormat::kMarkdown:
    case ReportFormat::kLatex:
      return render_report({.view = {markdown_table(table)}}, format);
    case ReportFormat::kText:
      break;
  }
  return render_report({.view = text_blocks(table)}, format);
}

}  // namespace s2o
