#include "lib/report/row_tables.h"

#include <fmt/format.h>

#include <utility>

#include "lib/core/text.h"
#include "lib/methods/method.h"
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

// "failed: s2o tau=0.1 on <place>: <why>"; settings of which the same text is true share a note.
std::vector<std::string> text_notes(const ResultTable& table, const ParamColumns& params,
                                    const char* label,
                                    std::optional<std::string> ResultRow::*text) {
  std::vector<std::pair<std::string, std::vector<std::string>>> causes;
  for (const ResultRow& row : table.rows) {
    if (!(row.*text)) continue;
    const std::string cause = fmt::format("on {}: {}", place_text(row), *(row.*text));
    if (causes.empty() || causes.back().first != cause) causes.push_back({cause, {}});
    const std::string setting = params.text(row);
    causes.back().second.push_back(row.method + (setting.empty() ? "" : " " + setting));
  }
  std::vector<std::string> notes;
  for (const auto& [cause, settings] : causes) {
    const std::string who = settings.size() > kMaxNamedSettings
                                ? fmt::format("{} settings", settings.size())
                                : join(settings);
    notes.push_back(fmt::format("{}: {} {}", label, who, cause));
  }
  return notes;
}

}  // namespace

ParamColumns::ParamColumns(const ResultTable& table) {
  std::map<std::string, const Json*> first;
  for (const ResultRow& row : table.rows) {
    const Json& reference = *first.try_emplace(row.method, &row.params).first->second;
    std::set<std::string>& shown = shown_[row.method];
    if (const MethodInfo* info = find_info(row.method); info != nullptr) shown.insert(info->knob);
    for (const auto& [name, value] : row.params.items()) {
      if (!reference.contains(name) || reference[name] != value) shown.insert(name);
    }
    for (const auto& [name, value] : reference.items()) {  // implied where it is left out
      if (!row.params.contains(name)) shown.insert(name);
    }
  }
}

std::string ParamColumns::text(const ResultRow& row) const {
  std::vector<std::string> parts;
  for (const auto& [name, value] : row.params.items()) {
    if (!shown_.at(row.method).contains(name)) continue;
    parts.push_back(fmt::format("{}={}", name, value_text(value)));
  }
  return join(parts, " ");
}

std::vector<std::string> ParamColumns::shared_notes(const ResultTable& table) const {
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

std::string place_text(const ResultRow& row) {
  if (row.kind == RowKind::kPrefill) return fmt::format("{}, {} tokens", row.input, row.seqlen);
  return fmt::format("{}, layer {}, seqlen {}", row.input, row.layer, row.seqlen);
}

std::vector<std::string> table_notes(const ResultTable& table, const ParamColumns& params) {
  std::vector<std::string> notes = text_notes(table, params, "failed", &ResultRow::error);
  for (std::string& note : text_notes(table, params, "not measured", &ResultRow::note)) {
    notes.push_back(std::move(note));
  }
  for (std::string& note : params.shared_notes(table)) notes.push_back(std::move(note));
  return notes;
}

ReportTable csv_table(const ResultTable& table) {
  const RowKind kind = table.rows.empty() ? RowKind::kAttention : table.rows.front().kind;
  ReportTable data;
  for (const std::string& name : result_columns(kind)) data.columns.push_back({.name = name});
  for (const ResultRow& row : table.rows) {
    const Json object = row_to_json(row);
    std::vector<ReportCell> cells;
    for (const ReportColumn& column : data.columns) cells.push_back({"", object[column.name]});
    data.rows.push_back(std::move(cells));
  }
  return data;
}

}  // namespace s2o
