// Rows of a prefill: written, read back, and as tables.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "lib/report/journal.h"
#include "lib/report/merge_results.h"
#include "lib/report/prefill_table.h"
#include "lib/report/results_file.h"
#include "lib/report/results_json.h"
#include "lib/report/retrieval_cells.h"
#include "lib/report/tests/sample_prefill.h"
#include "lib/testing/files.h"

namespace s2o {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;
using testing_support::TempFolder;
using Json = nlohmann::ordered_json;

void expect_equal(const ResultRow& a, const ResultRow& b) {
  EXPECT_EQ(row_to_json(a).dump(), row_to_json(b).dump());
  EXPECT_EQ(a.kind, b.kind);
  EXPECT_EQ(a.prefill.per_layer, b.prefill.per_layer);
}

TEST(prefill_rows, json_hdf5_and_journal_keep_everything) {
  const TempFolder folder;
  const ResultTable table = sample_prefill();
  write_results_json(folder / "results.json", table);
  write_results_hdf5(folder / "results.h5", table, {});
  const ResultTable from_json = read_results(folder / "results.json");
  const ResultTable from_hdf5 = read_results(folder / "results.h5");
  { Journal(folder / kJournalName, table.context).append({.cell = 3, .row = table.rows[1]}); }
  ASSERT_EQ(from_json.rows.size(), table.rows.size());
  ASSERT_EQ(from_hdf5.rows.size(), table.rows.size());
  for (std::size_t i = 0; i < table.rows.size(); ++i) {
    EXPECT_EQ(row_to_json(from_json.rows[i]).dump(), row_to_json(table.rows[i]).dump());
    expect_equal(from_hdf5.rows[i], table.rows[i]);
  }
  const JournalContent journal = read_journal(folder / kJournalName);
  ASSERT_EQ(journal.entries.size(), 1u);
  expect_equal(journal.entries[0].row, table.rows[1]);
}

TEST(prefill_rows, columns_are_those_of_a_prefill) {
  const Json row = row_to_json(sample_prefill().rows[0]);
  EXPECT_EQ(row["prompt"], "book");
  EXPECT_FALSE(row.contains("layer"));
  EXPECT_FALSE(row.contains("mse"));
  EXPECT_TRUE(row["linear_ms"].is_null());
  EXPECT_EQ(row["loss_by_position"].size(), 2u);
}

TEST(prefill_rows, merging_tells_models_and_replays_apart) {
  ResultTable table = sample_prefill();
  std::vector<ResultRow> more = {table.rows[0], table.rows[0], table.rows[0]};
  more[1].prefill.model = "llama-3.1-8b (seeded weights)";
  more[2].prefill.qkv = "replay of x";
  const std::size_t before = table.rows.size();
  EXPECT_EQ(merge_rows(table, more), 1u);
  EXPECT_EQ(table.rows.size(), before + 2);
}

TEST(retrieval_cells, counts_samples_and_tokens) {
  const std::vector<RetrievalCell> cells = retrieval_cells(sample_prefill(), {});
  ASSERT_EQ(cells.size(), 2u);
  EXPECT_EQ(cells[0].label, "dense");
  EXPECT_EQ(cells[0].exact.successes, 4);
  EXPECT_EQ(cells[1].label, "s2o tau=0.1");
  EXPECT_EQ(cells[1].exact.successes, 3);
  EXPECT_EQ(cells[1].exact.trials, 4);
  EXPECT_EQ(cells[1].tokens.successes, 23);
  EXPECT_EQ(cells[1].tokens.trials, 28);
}

TEST(retrieval_cells, models_are_named_where_there_are_several) {
  ResultTable table = sample_prefill();
  const std::size_t columns = retrieval_table(retrieval_cells(table, {})).columns.size();
  for (const auto rows = table.rows; const ResultRow& row : rows) {
    table.rows.push_back(row);
    table.rows.back().prefill.model = "qwen";
  }
  const ReportTable of_two = retrieval_table(retrieval_cells(table, {}));
  ASSERT_EQ(of_two.columns.size(), columns + 1);
  EXPECT_EQ(of_two.columns[0].name, "model");
  ASSERT_EQ(of_two.rows.size(), 4u);
  EXPECT_EQ(of_two.rows[0][0].text, "qwen");
  EXPECT_EQ(of_two.rows[3][0].text, "tiny-llama");
  EXPECT_EQ(of_two.rows[3].size(), of_two.columns.size());
}

TEST(prefill_table, text_has_blocks_for_texts_and_one_table_of_tasks) {
  const std::string text = render_prefill_results(sample_prefill(), ReportFormat::kText);
  EXPECT_THAT(text, HasSubstr("book, 2000 tokens (tiny-llama; attention_ref)"));
  EXPECT_THAT(text, HasSubstr("held-out loss by position, book, 2000 tokens"));
  EXPECT_THAT(text, HasSubstr("1024-1998"));
  EXPECT_THAT(text, HasSubstr("0.750 [0.301, 0.954]"));
  EXPECT_THAT(text, Not(HasSubstr("composition")));
  // Columns without any number are left out.
  EXPECT_THAT(text, Not(HasSubstr("top1_")));
}

TEST(prefill_table, a_replay_is_labelled_and_failures_are_named) {
  ResultTable table = sample_prefill();
  table.rows[1].prefill.qkv = "replay of synthetic/mixed";
  table.rows[1].error = "no memory";
  const std::string text = render_prefill_results(table, ReportFormat::kText);
  EXPECT_THAT(text, HasSubstr("Latency composition (replay of synthetic/mixed)"));
  EXPECT_THAT(text, HasSubstr("failed: s2o tau=0.1 on book, 2000 tokens: no memory"));
}

}  // namespace
}  // namespace s2o
