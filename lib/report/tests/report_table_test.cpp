#include "lib/report/report_table.h"

#include <gtest/gtest.h>

#include <limits>

#include "lib/core/error.h"

namespace s2o {
namespace {

Report sample_report() {
  ReportTable table{"sample",
                    "A title",
                    {{"name", "", true}, {"time", "ms", false}},
                    {{text_cell("a_b, \"c\""), number_cell(1.5)}, {text_cell("µ"), missing_cell()}},
                    {"A note."}};
  return {{table}, {}};
}

TEST(RenderReport, text_aligns_columns_by_what_a_terminal_shows) {
  EXPECT_EQ(render_report(sample_report(), ReportFormat::kText),
            "A title\n\n"
            "name      time [ms]\n"
            "--------  ---------\n"
            "a_b, \"c\"       1.50\n"
            "µ               n/a\n"
            "\nA note.\n");
}

TEST(RenderReport, markdown_escapes_what_it_would_interpret) {
  EXPECT_EQ(render_report(sample_report(), ReportFormat::kMarkdown),
            "**A title**\n\n"
            "| name | time [ms] |\n|---|---:|\n"
            "| a\\_b, \"c\" | 1.50 |\n| µ | n/a |\n\nA note.  \n");
}

TEST(RenderReport, csv_quotes_fields_and_leaves_missing_values_empty) {
  EXPECT_EQ(render_report(sample_report(), ReportFormat::kCsv),
            "# A title\n# A note.\nname,time\n\"a_b, \"\"c\"\"\",1.5\nµ,\n");
}

TEST(RenderReport, latex_escapes_and_uses_booktabs) {
  const std::string latex = render_report(sample_report(), ReportFormat::kLatex);
  EXPECT_NE(latex.find("\\begin{tabular}{lr}\n\\toprule\nname & time [ms] \\\\\n\\midrule\n"),
            std::string::npos);
  EXPECT_NE(latex.find("a\\_b, \"c\" & 1.50 \\\\\n"), std::string::npos);
}

TEST(RenderReport, json_has_full_values_and_null_for_missing) {
  const auto json = nlohmann::json::parse(render_report(sample_report(), ReportFormat::kJson));
  EXPECT_EQ(json["tables"][0]["rows"][0]["time"], 1.5);
  EXPECT_TRUE(json["tables"][0]["rows"][1]["time"].is_null());
  EXPECT_EQ(json["tables"][0]["columns"][1]["unit"], "ms");
}

TEST(RenderReport, csv_and_json_prefer_the_long_tables) {
  Report report = sample_report();
  report.data = {{"long", "Long", {{"x", ""}}, {{integer_cell(3)}}, {}}};
  EXPECT_EQ(render_report(report, ReportFormat::kCsv), "# Long\nx\n3\n");
  EXPECT_EQ(render_report(report, ReportFormat::kText).substr(0, 7), "A title");
}

TEST(Cells, numbers_have_significant_digits) {
  EXPECT_EQ(number_cell(1234.0).text, "1234");
  EXPECT_EQ(number_cell(12.345).text, "12.3");
  EXPECT_EQ(number_cell(0.1234).text, "0.123");
  EXPECT_EQ(number_cell(0.001234).text, "0.00123");
  EXPECT_EQ(number_cell(-1.5).text, "-1.50");
  EXPECT_EQ(number_cell(1.234e-5).text, "1.23e-05");
  EXPECT_EQ(number_cell(0.0).text, "0.00");
  EXPECT_EQ(number_cell(0.99999).text, "1.00");
  EXPECT_EQ(number_cell(std::nullopt).text, "n/a");
  EXPECT_EQ(number_cell(std::numeric_limits<double>::quiet_NaN()).text, "n/a");
  EXPECT_TRUE(number_cell(std::numeric_limits<double>::infinity()).value.is_null());
  EXPECT_EQ(fixed_cell(0.12345, 3).text, "0.123");
}

TEST(ParseReportFormat, unknown_format_lists_the_known_ones) {
  EXPECT_EQ(parse_report_format("csv", {"text", "csv"}), ReportFormat::kCsv);
  EXPECT_THROW(parse_report_format("latex", {"text", "csv"}), ConfigError);
  EXPECT_THROW(parse_report_format("markdwn", {"text", "markdown"}), ConfigError);
}

}  // namespace
}  // namespace s2o
