#include "lib/report/match.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "lib/core/error.h"
#include "lib/report/tests/sample_results.h"

namespace s2o {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::ThrowsMessage;

std::size_t index_of(const CurveSet& set, const std::string& label) {
  for (std::size_t m = 0; m < set.methods.size(); ++m) {
    if (set.methods[m].label == label) return m;
  }
  throw Error("no curve " + label);
}

MatchOptions layer_options() {
  MatchOptions options = sample_options();
  options.curves.unit = MatchUnit::kLayer;
  return options;
}

TEST(GeometricMean, value_and_interval_of_equal_values_are_that_value) {
  const GeometricMean mean = geometric_mean({3.0, 3.0, 3.0}, 100, 0);
  EXPECT_NEAR(*mean.value, 3.0, 1e-12);
  EXPECT_NEAR(*mean.low, 3.0, 1e-12);
  EXPECT_NEAR(*mean.high, 3.0, 1e-12);
  EXPECT_EQ(mean.count, 3);
}

TEST(GeometricMean, no_and_single_value_have_no_interval) {
  EXPECT_FALSE(geometric_mean({}, 100, 0).value);
  EXPECT_NEAR(*geometric_mean({2.0}, 100, 0).value, 2.0, 1e-12);
  EXPECT_FALSE(geometric_mean({2.0}, 100, 0).low);
}

TEST(GeometricMean, bootstrap_is_the_same_for_the_same_seed_and_differs_for_another) {
  std::vector<double> values;
  for (int i = 1; i <= 20; ++i) values.push_back(static_cast<double>(i));
  const GeometricMean first = geometric_mean(values, 2000, 7);
  const GeometricMean second = geometric_mean(values, 2000, 7);
  EXPECT_EQ(*first.low, *second.low);
  EXPECT_EQ(*first.high, *second.high);
  EXPECT_NE(*first.low, *geometric_mean(values, 2000, 8).low);
}

TEST(GeometricMean, interval_agrees_with_the_standard_error_of_the_mean_log) {
  std::vector<double> values;
  for (int i = 0; i < 400; ++i) values.push_back(i % 2 == 0 ? 1.0 : std::exp(1.0));
  // Mean log 0.5, standard deviation 0.5, standard error 0.025.
  const GeometricMean mean = geometric_mean(values, 2000, 0);
  EXPECT_NEAR(std::log(*mean.low), 0.5 - 1.96 * 0.025, 0.006);
  EXPECT_NEAR(std::log(*mean.high), 0.5 + 1.96 * 0.025, 0.006);
}

TEST(MatchSparsity, ratio_of_layers_is_the_geometric_mean_of_their_ratios) {
  const MatchOptions options = layer_options();
  const CurveSet set = build_curves(sample_table(), options.curves);
  const std::vector<MatchGrid> grids = match_sparsity(set, options);
  ASSERT_EQ(grids.size(), 1u);
  EXPECT_EQ(grids[0].num_units, 2);
  const MatchCell& blocks = grids[0].cells[index_of(set, "blocks")][1];
  EXPECT_NEAR(*blocks.ratio.value, 4.0, 1e-9);
  EXPECT_NEAR(*blocks.ratio.low, 2.0, 1e-9);
  EXPECT_NEAR(*blocks.ratio.high, 8.0, 1e-9);
  EXPECT_NEAR(*blocks.value.value, 4.0 * sample_mse(0.7, 1.0), 1e-9);
  EXPECT_NEAR(*grids[0].cells[index_of(set, "window")][1].ratio.value, 16.0, 1e-9);
  EXPECT_NEAR(*grids[0].cells[index_of(set, "s2o")][1].ratio.value, 1.0, 1e-12);
}

TEST(MatchSparsity, unit_out_of_range_is_left_out_and_counted) {
  const MatchOptions options = layer_options();
  const CurveSet set = build_curves(sample_table(), options.curves);
  const MatchCell cell = match_sparsity(set, options)[0].cells[index_of(set, "blocks")][2];
  EXPECT_EQ(cell.ratio.count, 1);
  EXPECT_NEAR(*cell.ratio.value, 2.0, 1e-9);
  EXPECT_FALSE(cell.ratio.low);
}

TEST(MatchSparsity, head_unit_uses_per_head_vectors) {
  MatchOptions options = sample_options();
  options.curves.unit = MatchUnit::kHead;
  const CurveSet set = build_curves(sample_table(), options.curves);
  EXPECT_EQ(set.units.size(), 4u);
  const MatchCell cell = match_sparsity(set, options)[0].cells[index_of(set, "blocks")][1];
  EXPECT_NEAR(*cell.ratio.value, 4.0, 1e-9);
  EXPECT_EQ(cell.ratio.count, 4);
  // Geometric mean over heads with .5 and 1.5 times the row's error.
  EXPECT_NEAR(*cell.value.value, 4.0 * sample_mse(0.7, std::sqrt(0.75)), 1e-9);
}

TEST(MatchSparsity, sequence_lengths_are_kept_apart) {
  ResultTable table = sample_table();
  for (const ResultTable sample = sample_table(); const ResultRow& row : sample.rows) {
    table.rows.push_back(row);
    table.rows.back().seqlen = 2048;
    *table.rows.back().metrics["mse"] *= row.method == "blocks" ? 10.0 : 1.0;
  }
  const MatchOptions options = layer_options();
  const CurveSet set = build_curves(table, options.curves);
  const std::vector<MatchGrid> grids = match_sparsity(set, options);
  ASSERT_EQ(grids.size(), 2u);
  EXPECT_EQ(grids[1].seqlen, 2048);
  EXPECT_NEAR(*grids[0].cells[index_of(set, "blocks")][1].ratio.value, 4.0, 1e-9);
  EXPECT_NEAR(*grids[1].cells[index_of(set, "blocks")][1].ratio.value, 40.0, 1e-9);
}

TEST(MatchMse, density_at_the_reference_error_has_the_shift_of_the_curves) {
  const MatchOptions options = layer_options();
  const CurveSet set = build_curves(sample_table(), options.curves);
  const std::vector<MatchGrid> grids = match_error(set, options);
  // log10(2)/4 and log10(8)/4 of sparsity are lost in layers 0 and 1.
  const double layer0 = 0.3 + std::log10(2.0) / 4.0;
  const double layer1 = 0.3 + std::log10(8.0) / 4.0;
  const MatchCell& cell = grids[0].cells[index_of(set, "blocks")][1];
  EXPECT_NEAR(*cell.value.value, std::sqrt(layer0 * layer1), 1e-9);
  EXPECT_NEAR(*cell.ratio.value, std::sqrt(layer0 * layer1) / 0.3, 1e-9);
}

TEST(MatchMse, explicit_levels_are_absolute_errors) {
  MatchOptions options = layer_options();
  options.errors = {1e-3};
  const CurveSet set = build_curves(sample_table(), options.curves);
  const MatchGrid grid = match_error(set, options)[0];
  // 10^(4 s - 6) = 1e-3 at s = .75.
  EXPECT_NEAR(*grid.cells[index_of(set, "s2o")][0].value.value, 0.25, 1e-9);
}

TEST(MatchMse, units_that_do_better_at_every_setting_are_counted_apart) {
  ResultTable table = sample_table();
  for (double sparsity : {0.4, 0.8}) {
    for (int layer : {0, 1}) {
      const double mse = sample_mse(sparsity, layer == 0 ? 1.0 : 1e-3);
      table.rows.push_back(
          sample_row({"oracle", {{"density", 1.0 - sparsity}}, 1.0 - sparsity, mse, layer}));
    }
  }
  const MatchOptions options = layer_options();
  const CurveSet set = build_curves(table, options.curves);
  const MatchGrid grid = match_error(set, options)[0];
  const MatchCell& cell = grid.cells[index_of(set, "oracle")][1];
  EXPECT_EQ(cell.ratio.count, 1);
  EXPECT_EQ(cell.num_exceeding, 1);
  EXPECT_EQ(ratio_cell(cell, 2).text, "1.00 (1+1)");
  EXPECT_EQ(grid.cells[index_of(set, "window")][1].num_exceeding, 0) << "never as good";
}

TEST(BestBaseline, oracles_and_the_own_family_do_not_count) {
  ResultTable table = sample_table();
  for (double sparsity : {0.4, 0.95}) {
    for (int layer : {0, 1}) {
      const double mse = sample_mse(sparsity, 0.1);
      table.rows.push_back(
          sample_row({"oracle", {{"density", 1.0 - sparsity}}, 1.0 - sparsity, mse, layer}));
      table.rows.push_back(
          sample_row({"s2o_plus", {{"tau", sparsity}}, 1.0 - sparsity, mse, layer}));
    }
  }
  MatchOptions options = layer_options();
  options.curves.knobs = {{"s2o_plus", "tau"}};
  const CurveSet set = build_curves(table, options.curves);
  const MatchGrid grid = match_sparsity(set, options)[0];
  const MethodCurves& reference = find_curves(set, "s2o");
  EXPECT_EQ(best_baseline(set, grid, 1, reference, false),
            static_cast<int>(index_of(set, "blocks")));
  EXPECT_EQ(best_baseline(set, grid, 1, reference, true), -1);
}

TEST(BuildCurves, other_parameters_make_other_curves_and_labels) {
  ResultTable table = sample_table();
  for (double sparsity : {0.5, 0.9}) {
    table.rows.push_back(sample_row(
        {"s2o", {{"tau", sparsity}, {"segment_size", 256}}, 1.0 - sparsity, 1e-4 * sparsity}));
  }
  const CurveSet set = build_curves(table, layer_options().curves);
  std::vector<std::string> labels;
  for (const MethodCurves& curves : set.methods) labels.push_back(curves.label);
  EXPECT_THAT(labels, ElementsAre("window", "blocks", "s2o", "s2o segment_size=256"));
  EXPECT_EQ(find_curves(set, "s2o").params["segment_size"], 1024) << "defaults win";
  EXPECT_EQ(find_curves(set, "s2o segment_size=1024").label, "s2o");
  EXPECT_EQ(find_curves(set, "s2o segment_size=256").label, "s2o segment_size=256");
}

TEST(BuildCurves, dense_and_failed_rows_make_no_curve) {
  ResultTable table = sample_table();
  table.rows.push_back(sample_row({"other", {{"x", 1}}, 0.5, 1e-3}));
  table.rows.back().error = "failed";
  const CurveSet set = build_curves(table, layer_options().curves);
  for (const MethodCurves& curves : set.methods) {
    EXPECT_NE(curves.method, "dense");
    EXPECT_NE(curves.method, "other");
  }
}

TEST(BuildCurves, auto_unit_is_head_only_if_every_row_has_vectors) {
  ResultTable table = sample_table();
  EXPECT_EQ(build_curves(table, sample_options().curves).unit, MatchUnit::kHead);
  table.rows.back().per_head.clear();
  EXPECT_EQ(build_curves(table, sample_options().curves).unit, MatchUnit::kLayer);
}

TEST(BuildCurves, head_unit_without_vectors_is_an_error_that_names_the_row) {
  ResultTable table = sample_table();
  table.rows.back().per_head.clear();
  CurveOptions options = sample_options().curves;
  options.unit = MatchUnit::kHead;
  EXPECT_THAT([&] { build_curves(table, options); },
              ThrowsMessage<ConfigError>(HasSubstr("'window' on tiny/book layer 1")));
}

TEST(BuildCurves, table_without_sparse_rows_is_an_error) {
  ResultTable table;
  table.rows.push_back(sample_row({"dense", nlohmann::ordered_json::object(), 1.0, 0.0}));
  EXPECT_THAT([&] { build_curves(table, sample_options().curves); },
              ThrowsMessage<ConfigError>(HasSubstr("1 rows, 1 usable")));
}

TEST(FindCurves, unknown_and_ambiguous_references_list_what_there_is) {
  ResultTable table = sample_table();
  for (std::int64_t size : {128, 256}) {
    table.rows.push_back(sample_row({"other", {{"size", size}}, 0.5, 1e-3}));
  }
  const CurveSet set = build_curves(table, sample_options().curves);
  EXPECT_THAT([&] { find_curves(set, "s20"); },
              ThrowsMessage<ConfigError>(HasSubstr("'window', 'blocks', 's2o', ")));
  EXPECT_THAT([&] { find_curves(set, "other"); },
              ThrowsMessage<ConfigError>(HasSubstr("'other size=128', 'other size=256'")));
  EXPECT_THROW(find_curves(set, ""), ConfigError);
  EXPECT_THROW(find_curves(set, "s2o size"), ConfigError);
}

TEST(ParseLevels, lists_are_sorted_and_bad_numbers_named) {
  EXPECT_THAT(parse_sparsity_levels("0.9,0.5,0.9"), ElementsAre(0.5, 0.9));
  EXPECT_THAT(parse_error_levels("1e-5,1e-4"), ElementsAre(1e-5, 1e-4));
  EXPECT_TRUE(parse_error_levels("auto").empty());
  for (const char* bad : {"", "0.5,", "0", "1", "1.5", "-0.1", "nan", "0.5x", "0,5"}) {
    EXPECT_THROW(parse_sparsity_levels(bad), ConfigError) << bad;
  }
  EXPECT_THROW(parse_error_levels("inf"), ConfigError);
  EXPECT_THROW(parse_error_levels("0"), ConfigError);
}

}  // namespace
}  // namespace s2o
