// A table as a reader sees it, and its renderings. Results become ReportTables in match.cpp and
// tables/*.cpp; nothing here computes.
#pragma once

#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

namespace s2o {

// One cell: what people read, and the full value that csv and json carry.
struct ReportCell {
  std::string text;
  nlohmann::ordered_json value;  // null = not available, never 0
};

// "n/a" and null.
ReportCell missing_cell();
ReportCell text_cell(const std::string& text);
ReportCell integer_cell(std::int64_t value);
// `digits` significant digits, scientific below 1e-3 and from 1e5 on.
ReportCell number_cell(std::optional<double> value, int digits = 3);
// `digits` decimals.
ReportCell fixed_cell(std::optional<double> value, int digits = 3);

struct ReportColumn {
  std::string name;
  std::string unit;  // may be empty
  bool left_aligned = false;
  bool wrapped = false;  // in text, the header may break after an underscore
};

struct ReportTable {
  std::string name;   // "matched_sparsity"
  std::string title;  // one line; may be empty
  std::vector<ReportColumn> columns;
  std::vector<std::vector<ReportCell>> rows;  // each with one cell per column
  std::vector<std::string> notes;             // how the numbers are defined, what was left out
};

// A report has the same content twice: wide tables for people (one method a row, one level a
// column) and long tables for programs (one number a row). Where one layout serves both, `data` is
// empty and `view` serves both.
struct Report {
  std::vector<ReportTable> view;
  std::vector<ReportTable> data;
};

enum class ReportFormat { kText, kMarkdown, kCsv, kLatex, kJson };

// The names of `allowed` are those of the formats, lower case. ConfigError for anything else.
ReportFormat parse_report_format(const std::string& name, const std::vector<std::string>& allowed);

// Text, markdown and latex show `view`; csv and json carry `data`. csv: tables one after the other,
// an empty line between; notes are comment lines (#) above the header. json:
// {"tables": [{"name", "title", "notes", "columns": [...], "rows": [{column: value}]}]}.
std::string render_report(const Report& report, ReportFormat format);

}  // namespace s2o
