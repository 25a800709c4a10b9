#include "lib/report/report_table.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <map>

#include "lib/config/json_reader.h"
#include "lib/core/error.h"
#include "lib/core/printable.h"
#include "lib/core/text.h"

namespace s2o {
namespace {

constexpr std::size_t kWrapWidth = 10;

std::string header_text(const ReportColumn& column) {
  return column.unit.empty() ? column.name : fmt::format("{} [{}]", column.name, column.unit);
}

// Columns of a terminal, not bytes: continuation bytes of UTF-8 take no room.
std::size_t display_width(const std::string& text) {
  return static_cast<std::size_t>(std::count_if(text.begin(), text.end(), [](char c) {
    return (static_cast<unsigned char>(c) & 0xc0u) != 0x80u;
  }));
}

std::string padded(const std::string& text, std::size_t width, bool left_aligned) {
  const std::string space(width - std::min(width, display_width(text)), ' ');
  return left_aligned ? text + space : space + text;
}

// The lines of a header in text: as few as keep each within kWrapWidth, broken after underscores.
std::vector<std::string> header_lines(const ReportColumn& column) {
  const std::string text = header_text(column);
  if (!column.wrapped) return {text};
  std::vector<std::string> lines = {""};
  for (std::size_t begin = 0; begin < text.size();) {
    const std::size_t underscore = text.find('_', begin);
    const std::size_t end = underscore == std::string::npos ? text.size() : underscore + 1;
    const std::string part = text.substr(begin, end - begin);
    if (!lines.back().empty() && lines.back().size() + part.size() > kWrapWidth) {
      lines.emplace_back();
    }
    lines.back() += part;
    begin = end;
  }
  return lines;
}

std::vector<std::size_t> column_widths(const ReportTable& table) {
  std::vector<std::size_t> widths;
  for (std::size_t c = 0; c < table.columns.size(); ++c) {
    std::size_t width = 0;
    for (const std::string& line : header_lines(table.columns[c])) {
      width = std::max(width, display_width(line));
    }
    for (const auto& row : table.rows) width = std::max(width, display_width(row[c].text));
    widths.push_back(width);
  }
  return widths;
}

std::string render_text(const ReportTable& table) {
  const std::vector<std::size_t> widths = column_widths(table);
  // text_of(c): what stands in column c.
  const auto line_of = [&](auto&& text_of) {
    std::string line;
    for (std::size_t c = 0; c < widths.size(); ++c) {
      line += (c == 0 ? "" : "  ") + padded(text_of(c), widths[c], table.columns[c].left_aligned);
    }
    line.erase(line.find_last_not_of(' ') + 1);
    return line + "\n";
  };
  std::string out = table.title.empty() ? "" : table.title + "\n\n";
  std::size_t num_header_lines = 0;
  for (const ReportColumn& column : table.columns) {
    num_header_lines = std::max(num_header_lines, header_lines(column).size());
  }
  for (std::size_t i = 0; i < num_header_lines; ++i) {
    out += line_of([&](std::size_t c) {
      const std::vector<std::string> lines = header_lines(table.columns[c]);
      const std::size_t above = num_header_lines - lines.size();  // headers stand on the rule
      return i < above ? "" : lines[i - above];
    });
  }
  out += line_of([&](std::size_t c) { return std::string(widths[c], '-'); });
  for (const auto& row : table.rows) out += line_of([&](std::size_t c) { return row[c].text; });
  if (!table.notes.empty()) out += "\n";
  for (const std::string& note : table.notes) out += note + "\n";
  return out;
}

std::string markdown_escape(const std::string& text) {
  std::string out;
  for (char c : text) {
    if (c == '|' || c == '*' || c == '_' || c == '\\') out += '\\';
    out += c;
  }
  return out;
}

std::string render_markdown(const ReportTable& table) {
  std::string out =
      table.title.empty() ? "|" : fmt::format("**{}**\n\n|", markdown_escape(table.title));
  for (const ReportColumn& column : table.columns) {
    out += fmt::format(" {} |", markdown_escape(header_text(column)));
  }
  out += "\n|";
  for (const ReportColumn& column : table.columns) out += column.left_aligned ? "---|" : "---:|";
  out += "\n";
  for (const auto& row : table.rows) {
    out += "|";
    for (const ReportCell& cell : row) out += fmt::format(" {} |", markdown_escape(cell.text));
    out += "\n";
  }
  if (!table.notes.empty()) out += "\n";
  for (const std::string& note : table.notes) out += markdown_escape(note) + "  \n";
  return out;
}

std::string latex_escape(const std::string& text) {
  static const std::map<char, std::string_view> kEscapes = {{'_', "\\_"},
                                                            {'%', "\\%"},
                                                            {'&', "\\&"},
                                                            {'#', "\\#"},
                                                            {'$', "\\$"},
                                                            {'{', "\\{"},
                                                            {'}', "\\}"},
                                                            {'<', "$<$"},
                                                            {'>', "$>$"},
                                                            {'\\', "\\textbackslash{}"},
                                                            {'~', "\\textasciitilde{}"},
                                                            {'^', "\\textasciicircum{}"}};
  std::string out;
  for (const char c : text) {
    const auto escape = kEscapes.find(c);
    out += escape == kEscapes.end() ? std::string_view(&c, 1) : escape->second;
  }
  return out;
}

// Needs the booktabs package.
std::string render_latex(const ReportTable& table) {
  std::string alignment;
  for (const ReportColumn& column : table.columns) alignment += column.left_aligned ? 'l' : 'r';
  std::string out = fmt::format("% {}\n", table.title);
  for (const std::string& note : table.notes) out += fmt::format("% {}\n", note);
  out += fmt::format("\\begin{{tabular}}{{{}}}\n\\toprule\n", alignment);
  std::vector<std::string> fields;
  for (const ReportColumn& column : table.columns) {
    fields.push_back(latex_escape(header_text(column)));
  }
  out += join(fields, " & ") + " \\\\\n\\midrule\n";
  for (const auto& row : table.rows) {
    fields.clear();
    for (const ReportCell& cell : row) fields.push_back(latex_escape(cell.text));
    const std::string line = join(fields, " & ");
    // A row that starts with "[" would be read as an argument of the line break before it.
    out += (line.starts_with('[') ? "{}" : "") + line + " \\\\\n";
  }
  return out + "\\bottomrule\n\\end{tabular}\n";
}

std::string csv_field(const std::string& text) {
  if (text.find_first_of(",\"\r\n") == std::string::npos) return text;
  std::string out = "\"";
  for (char c : text) {
    if (c == '"') out += '"';
    out += c;
  }
  return out + "\"";
}

std::string csv_value(const nlohmann::ordered_json& value) {
  if (value.is_null()) return "";
  // Nine digits: what follows is rounding noise of the sums, and differs between machines.
  if (value.is_number_float()) return fmt::format("{:.9g}", value.get<double>());
  return csv_field(value.is_string() ? value.get<std::string>() : json_text(value));
}

std::string render_csv(const ReportTable& table) {
  std::string out = table.title.empty() ? "" : fmt::format("# {}\n", table.title);
  for (const std::string& note : table.notes) out += fmt::format("# {}\n", note);
  std::vector<std::string> fields;
  for (const ReportColumn& column : table.columns) fields.push_back(csv_field(column.name));
  out += join(fields, ",") + "\n";
  for (const auto& row : table.rows) {
    fields.clear();
    for (const ReportCell& cell : row) fields.push_back(csv_value(cell.value));
    out += join(fields, ",") + "\n";
  }
  return out;
}

nlohmann::ordered_json table_json(const ReportTable& table) {
  nlohmann::ordered_json columns = nlohmann::ordered_json::array();
  for (const ReportColumn& column : table.columns) {
    columns.push_back({{"name", column.name}, {"unit", column.unit}});
  }
  nlohmann::ordered_json rows = nlohmann::ordered_json::array();
  for (const auto& row : table.rows) {
    nlohmann::ordered_json object = nlohmann::ordered_json::object();
    for (std::size_t c = 0; c < row.size(); ++c) object[table.columns[c].name] = row[c].value;
    rows.push_back(std::move(object));
  }
  return {{"name", table.name},
          {"title", table.title},
          {"notes", table.notes},
          {"columns", columns},
          {"rows", std::move(rows)}};
}

// A name with a line break in it must not break the table.
ReportTable escaped(ReportTable table) {
  table.title = printable(table.title);
  for (std::string& note : table.notes) note = printable(note);
  for (auto& row : table.rows) {
    for (ReportCell& cell : row) {
      cell.text = printable(cell.text);
      if (cell.value.is_string()) cell.value = printable(cell.value.get<std::string>());
    }
  }
  return table;
}

std::string render_json(const std::vector<ReportTable>& tables) {
  nlohmann::ordered_json out = {{"tables", nlohmann::ordered_json::array()}};
  for (const ReportTable& table : tables) out["tables"].push_back(table_json(table));
  return json_text(out, 1) + "\n";
}

}  // namespace

ReportCell missing_cell() { return {"n/a", nullptr}; }

ReportCell text_cell(const std::string& text) { return {text, text}; }

ReportCell integer_cell(std::int64_t value) { return {fmt::format("{}", value), value}; }

ReportCell number_cell(std::optional<double> value, int digits) {
  if (!value || !std::isfinite(*value)) return missing_cell();
  // The exponent after rounding: 0.9996 is 1.00.
  const std::string scientific = fmt::format("{:.{}e}", *value, digits - 1);
  const int exponent = std::stoi(scientific.substr(scientific.find('e') + 1));
  if (*value != 0.0 && (exponent < -3 || exponent >= 5)) return {scientific, *value};
  return {fmt::format("{:.{}f}", *value, std::max(0, digits - 1 - exponent)), *value};
}

ReportCell fixed_cell(std::optional<double> value, int digits) {
  if (!value || !std::isfinite(*value)) return missing_cell();
  return {fmt::format("{:.{}f}", *value, digits), *value};
}

ReportFormat parse_report_format(const std::string& name, const std::vector<std::string>& allowed) {
  static const std::map<std::string, ReportFormat> kFormats = {
      {"text", ReportFormat::kText},
      {"markdown", ReportFormat::kMarkdown},
      {"csv", ReportFormat::kCsv},
      {"latex", ReportFormat::kLatex},
      {"json", ReportFormat::kJson}};
  if (std::find(allowed.begin(), allowed.end(), name) != allowed.end()) return kFormats.at(name);
  throw ConfigError(fmt::format("--format {}: unknown format{}; formats: {}", name,
                                did_you_mean(name, allowed), join(allowed)));
}

std::string render_report(const Report& report, ReportFormat format) {
  const std::vector<ReportTable>& data = report.data.empty() ? report.view : report.data;
  if (format == ReportFormat::kJson) return render_json(data);
  const auto render = format == ReportFormat::kText       ? render_text
                      : format == ReportFormat::kMarkdown ? render_markdown
                      : format == ReportFormat::kLatex    ? render_latex
                                                          : render_csv;
  std::string out;
  for (const ReportTable& table : format == ReportFormat::kCsv ? data : report.view) {
    if (!out.empty()) out += "\n";
    out += render(escaped(table));
  }
  return out;
}

}  // namespace s2o
