#include "lib/report/merge_results.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "lib/core/error.h"
#include "lib/input/identity.h"
#include "lib/report/results_file.h"
#include "lib/report/tests/sample_results.h"
#include "lib/testing/files.h"

namespace s2o {
namespace {

using Json = nlohmann::ordered_json;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using testing_support::message_of;
using testing_support::TempFolder;

TEST(MergeRows, other_cells_are_appended_in_order) {
  ResultTable table;
  table.rows = {sample_row({"s2o", {{"tau", 0.1}}, 0.5, 1e-3, 0})};
  EXPECT_EQ(merge_rows(table, {sample_row({"s2o", {{"tau", 0.1}}, 0.5, 1e-3, 1}),
                               sample_row({"s2o", {{"tau", 0.2}}, 0.4, 2e-3, 0})}),
            0u);
  ASSERT_EQ(table.rows.size(), 3u);
  EXPECT_EQ(table.rows[1].layer, 1);
  EXPECT_EQ(table.rows[2].params["tau"], 0.2);
}

TEST(MergeRows, the_later_row_of_a_cell_replaces_the_earlier) {
  ResultTable table;
  table.rows = {sample_row({"s2o", {{"tau", 0.1}}, 0.5, 1e-3})};
  EXPECT_EQ(merge_rows(table, {sample_row({"s2o", {{"tau", 0.1}}, 0.5, 2e-3})}), 1u);
  ASSERT_EQ(table.rows.size(), 1u);
  EXPECT_EQ(*table.rows[0].metrics["mse"], 2e-3);
}

TEST(MergeRows, a_failed_row_does_not_replace_a_good_one) {
  ResultTable table;
  table.rows = {sample_row({"s2o", {{"tau", 0.1}}, 0.5, 1e-3})};
  ResultRow failed = table.rows[0];
  failed.error = "failed";
  merge_rows(table, {failed});
  EXPECT_FALSE(table.rows[0].error);
  table.rows[0].error = "failed before";
  merge_rows(table, {sample_row({"s2o", {{"tau", 0.1}}, 0.5, 3e-3})});
  EXPECT_FALSE(table.rows[0].error);
}

// A results file with one row of mse `mse`.
void write_run(const std::filesystem::path& file, const InputIdentity& identity, double mse,
               bool has_ids = true) {
  ResultTable table;
  table.rows = {sample_row({"s2o", {{"tau", 0.1}}, 0.5, mse})};
  table.context["config"] = identity.facts;
  if (has_ids) {
    table.rows[0].input_id = identity.id();
    table.context["inputs"] = Json::array({input_to_json(table.rows[0].input, identity)});
  }
  write_results_json(file, table);
}

class ReadMergedResultsTest : public ::testing::TestWithParam<bool> {
 protected:
  std::vector<std::string> inputs_of(const ResultTable& table) const {
    std::vector<std::string> names;
    for (const ResultRow& row : table.rows) names.push_back(row.input);
    return names;
  }
  TempFolder folder_;
};

TEST_P(ReadMergedResultsTest, runs_of_other_seeds_and_dtypes_keep_all_their_rows) {
  write_run(folder_ / "a.json", {.facts = {{"dtype", "bf16"}, {"seed", 0}}}, 1e-3, GetParam());
  write_run(folder_ / "b.json", {.facts = {{"dtype", "bf16"}, {"seed", 1}}}, 2e-3, GetParam());
  write_run(folder_ / "c.json", {.facts = {{"dtype", "fp16"}, {"seed", 0}}}, 3e-3, GetParam());
  const ResultTable table =
      read_merged_results({folder_ / "a.json", folder_ / "b.json", folder_ / "c.json"});
  EXPECT_THAT(inputs_of(table),
              ElementsAre("tiny/book dtype=bf16 seed=0", "tiny/book dtype=bf16 seed=1",
                          "tiny/book dtype=fp16 seed=0"));
}

TEST_P(ReadMergedResultsTest, a_repeated_run_replaces_its_rows_under_the_same_name) {
  const InputIdentity identity = {.facts = {{"dtype", "bf16"}, {"seed", 0}}};
  write_run(folder_ / "a.json", identity, 1e-3, GetParam());
  write_run(folder_ / "b.json", identity, 2e-3, GetParam());
  const ResultTable table = read_merged_results({folder_ / "a.json", folder_ / "b.json"});
  EXPECT_THAT(inputs_of(table), ElementsAre("tiny/book"));
  EXPECT_EQ(table.rows[0].metrics.at("mse"), 2e-3);
}

INSTANTIATE_TEST_SUITE_P(WithAndWithoutIds, ReadMergedResultsTest, ::testing::Bool());

TEST(ReadMergedResults, rows_of_one_file_that_nothing_tells_apart_are_an_error) {
  const TempFolder folder;
  ResultTable table;
  table.rows = {sample_row({"s2o", {{"tau", 0.1}}, 0.5, 1e-3}),
                sample_row({"s2o", {{"tau", 0.1}}, 0.5, 2e-3})};
  write_results_json(folder / "a.json", table);
  EXPECT_THAT(message_of<InputError>([&] { read_merged_results({folder / "a.json"}); }),
              HasSubstr("rows 0 and 1 are both s2o on tiny/book, layer 0, seqlen 1024"));
}

TEST(ReadMergedResults, missing_file_is_an_error) {
  EXPECT_THROW(read_merged_results({"/nonexistent/results.json"}), InputError);
}

}  // namespace
}  // namespace s2o
