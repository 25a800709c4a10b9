#include "lib/report/merge_results.h"

#include <gtest/gtest.h>

#include "lib/core/error.h"
#include "lib/report/tests/sample_results.h"

namespace s2o {
namespace {

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

TEST(ReadMergedResults, missing_file_is_an_error) {
  EXPECT_THROW(read_merged_results({"/nonexistent/results.json"}), InputError);
}

}  // namespace
}  // namespace s2o
