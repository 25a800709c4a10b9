// Every paper table from one hand-made result table, against golden files. To write them anew after
// a change that is meant: S2O_UPDATE_GOLDEN=1 build/cpu/report_tests, then read the difference.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <fstream>
#include <sstream>

#include "lib/core/error.h"
#include "lib/report/paper_table.h"
#include "lib/report/tests/sample_prefill.h"
#include "lib/report/tests/sample_results.h"

namespace s2o {
namespace {

using ::testing::HasSubstr;
using ::testing::ThrowsMessage;

// The sample, with a second S2O setting, a compensated variant and another window.
ResultTable golden_results() {
  ResultTable table = sample_table();
  for (int layer : {0, 1}) {
    for (double sparsity : {0.4, 0.7, 0.95}) {
      const double density = sample_density(sparsity);
      table.rows.push_back(sample_row({"s2o",
                                       {{"tau", sparsity}, {"segment_size", 256}},
                                       density,
                                       sample_mse(sparsity, 0.5),
                                       layer}));
      table.rows.push_back(sample_row({"blocks",
                                       {{"threshold", density}, {"compensation", "centroid"}},
                                       density,
                                       sample_mse(sparsity, layer == 0 ? 0.5 : 2.0),
                                       layer}));
      table.rows.push_back(sample_row({"streaming_llm",
                                       {{"sink", 0}, {"window", std::round(4000.0 * density)}},
                                       density,
                                       sample_mse(sparsity, 20.0),
                                       layer}));
    }
  }
  return table;
}

// What a table is made from: rows of evaluations, or of prefills.
ResultTable results_for(const PaperTable& table) {
  const bool of_prefills = table.name == "end_to_end" || table.name == "retrieval";
  return of_prefills ? sample_prefill() : golden_results();
}

MatchOptions golden_options() {
  MatchOptions options = sample_options();
  options.curves.knobs = {{"streaming_llm", "window"}};
  return options;
}

void expect_golden(const std::string& name, const std::string& text) {
  const std::string path = std::string(S2O_SOURCE_DIR) + "/lib/report/tests/golden/" + name;
  if (std::getenv("S2O_UPDATE_GOLDEN")) {
    std::ofstream(path, std::ios::binary) << text;
    return;
  }
  std::ifstream file(path, std::ios::binary);
  ASSERT_TRUE(file) << path << " is missing";
  std::stringstream golden;
  golden << file.rdbuf();
  EXPECT_EQ(text, golden.str()) << path;
}

// Beside rows of prefills a table of attention is what it is without them, and the other way round.
TEST(PaperTable, rows_of_the_other_command_change_nothing) {
  for (const PaperTable* table : all_paper_tables()) {
    SCOPED_TRACE(table->name);
    ResultTable alone = results_for(*table);
    ResultTable both = alone;
    const ResultTable prefills = sample_prefill();
    const ResultTable other =
        alone.rows.front().kind == RowKind::kPrefill ? golden_results() : prefills;
    both.rows.insert(both.rows.end(), other.rows.begin(), other.rows.end());
    EXPECT_EQ(render_report(table->build(both, golden_options()), ReportFormat::kText),
              render_report(table->build(alone, golden_options()), ReportFormat::kText));
    EXPECT_THROW(table->build(other, golden_options()), ConfigError);
  }
}

TEST(PaperTable, text_of_every_table_is_golden) {
  for (const PaperTable* table : all_paper_tables()) {
    const Report report = table->build(results_for(*table), golden_options());
    expect_golden(table->name + ".txt", render_report(report, ReportFormat::kText));
  }
}

TEST(PaperTable, csv_of_every_table_is_golden) {
  for (const PaperTable* table : all_paper_tables()) {
    const Report report = table->build(results_for(*table), golden_options());
    expect_golden(table->name + ".csv", render_report(report, ReportFormat::kCsv));
  }
}

TEST(PaperTable, every_row_has_a_cell_for_every_column) {
  for (const PaperTable* table : all_paper_tables()) {
    const Report report = table->build(results_for(*table), golden_options());
    for (const auto* tables : {&report.view, &report.data}) {
      for (const ReportTable& part : *tables) {
        for (const auto& row : part.rows) EXPECT_EQ(row.size(), part.columns.size()) << part.name;
      }
    }
  }
}

TEST(PaperTable, every_table_rejects_results_without_rows) {
  for (const PaperTable* table : all_paper_tables()) {
    EXPECT_THROW(table->build(ResultTable{}, golden_options()), ConfigError) << table->name;
  }
}

TEST(PaperTable, per_head_without_vectors_says_where_they_are) {
  ResultTable results = golden_results();
  for (ResultRow& row : results.rows) row.per_head.clear();
  EXPECT_THAT([&] { find_paper_table("per_head").build(results, golden_options()); },
              ThrowsMessage<ConfigError>(HasSubstr("results.h5")));
}

TEST(PaperTable, unknown_table_suggests_the_nearest) {
  EXPECT_THAT([] { find_paper_table("frontire"); },
              ThrowsMessage<ConfigError>(HasSubstr("did you mean 'frontier'?")));
}

}  // namespace
}  // namespace s2o
