#include "lib/report/matched_error.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "lib/core/error.h"
#include "lib/report/tests/sample_prefill.h"
#include "lib/report/tests/sample_results.h"

namespace s2o {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::ThrowsMessage;

ResultRow timed_row(const std::string& method, nlohmann::ordered_json params, int layer,
                    double error, double total_ms) {
  ResultRow row = sample_row({method, std::move(params), total_ms / 100.0, error * error, layer});
  row.metrics["relative_l2"] = error;
  row.metrics["total_latency_ms"] = total_ms;
  row.metrics["speedup_vs_dense"] = 100.0 / total_ms;
  return row;
}

// Two layers, dense takes 100 ms. In layer 0 blocks need 20 ms at an error of .1 and S2O 10 or,
// with other segments, 5 ms; in layer 1 blocks never err so little, S2O needs 40 ms.
ResultTable two_layers() {
  ResultTable table;
  table.rows = {
      timed_row("dense", nlohmann::ordered_json::object(), 0, 0.0, 100.0),
      timed_row("blocks", {{"threshold", 0.8}, {"compensation", "none"}}, 0, 0.1, 20.0),
      timed_row("blocks", {{"threshold", 0.5}, {"compensation", "none"}}, 0, 0.3, 10.0),
      timed_row("s2o", {{"tau", 0.01}, {"segment_size", 1024}}, 0, 0.1, 10.0),
      timed_row("s2o", {{"tau", 0.01}, {"segment_size", 256}}, 0, 0.1, 5.0),
      timed_row("oracle", {{"density", 0.1}}, 0, 0.01, 1.0),
      timed_row("dense", nlohmann::ordered_json::object(), 1, 0.0, 100.0),
      timed_row("blocks", {{"threshold", 0.8}, {"compensation", "none"}}, 1, 0.4, 20.0),
      timed_row("s2o", {{"tau", 0.01}, {"segment_size", 1024}}, 1, 0.05, 80.0),
      timed_row("s2o", {{"tau", 0.1}, {"segment_size", 1024}}, 1, 0.2, 20.0),
  };
  return table;
}

std::vector<MatchedErrorGroup> groups_of(const ResultTable& table, ErrorOn on,
                                         const std::vector<double>& targets,
                                         const std::vector<PeerTime>& peers = {}) {
  return match_errors(unit_settings(table, on, sample_options().curves), targets, peers);
}

const MatchedErrorCell& cell_of(const MatchedErrorGroup& group, const std::string& method,
                                std::size_t target = 0) {
  for (std::size_t m = 0; m < group.methods.size(); ++m) {
    if (group.methods[m] == method) return group.cells[m][target];
  }
  throw Error("no method " + method);
}

TEST(MatchErrors, units_are_layers_and_dense_is_what_others_are_compared_with) {
  const auto groups = groups_of(two_layers(), ErrorOn::kRelativeL2, {0.1});
  ASSERT_EQ(groups.size(), 1u);
  EXPECT_THAT(groups[0].methods, ElementsAre("blocks", "oracle", "s2o"));
  EXPECT_THAT(groups[0].units, ElementsAre("layer 0", "layer 1"));
}

TEST(MatchErrors, mean_over_the_units_that_reach_the_target) {
  const auto groups = groups_of(two_layers(), ErrorOn::kRelativeL2, {0.1, 0.5});
  const MatchedErrorCell& blocks = cell_of(groups[0], "blocks");
  EXPECT_EQ(blocks.speedup_vs_dense.count, 1);
  EXPECT_NEAR(*blocks.speedup_vs_dense.value, 5.0, 1e-9);
  const MatchedErrorCell& loose = cell_of(groups[0], "blocks", 1);
  EXPECT_NEAR(*loose.speedup_vs_dense.value, std::sqrt(10.0 * 5.0), 1e-9);
}

TEST(MatchErrors, the_fastest_family_counts_in_each_unit) {
  const auto groups = groups_of(two_layers(), ErrorOn::kRelativeL2, {0.1});
  const MatchedErrorCell& s2o = cell_of(groups[0], "s2o");
  // 5 ms in layer 0; in layer 1 half way between 80 and 20 ms in log-log.
  EXPECT_NEAR(*s2o.total_ms.value, std::sqrt(5.0 * 40.0), 1e-9);
  EXPECT_NEAR(*s2o.compute_density.value, std::sqrt(0.05 * 0.4), 1e-9);
  EXPECT_THAT(s2o.families, ElementsAre(std::pair("s2o", 1), std::pair("s2o segment_size=256", 1)));
}

TEST(MatchErrors, oracles_have_a_density_and_no_time) {
  const auto groups = groups_of(two_layers(), ErrorOn::kRelativeL2, {0.1});
  const MatchedErrorCell& oracle = cell_of(groups[0], "oracle");
  EXPECT_FALSE(oracle.speedup_vs_dense.value);
  EXPECT_NEAR(*oracle.least_density.value, 0.01, 1e-9);
}

TEST(MatchErrors, peers_of_the_same_shape_are_compared) {
  const auto groups =
      groups_of(two_layers(), ErrorOn::kRelativeL2, {0.1},
                {{"torch_cudnn", 1024, 2, 1, 64, 80.0}, {"other", 1024, 4, 1, 64, 80.0}});
  const MatchedErrorCell& blocks = cell_of(groups[0], "blocks");
  EXPECT_NEAR(*blocks.speedup_vs_peer.at("torch_cudnn").value, 4.0, 1e-9);
  EXPECT_FALSE(blocks.speedup_vs_peer.contains("other"));
}

TEST(MatchErrors, lengths_and_inputs_are_kept_apart) {
  ResultTable table = two_layers();
  for (const auto layers = two_layers(); const ResultRow& row : layers.rows) {
    table.rows.push_back(row);
    table.rows.back().seqlen = 512;
    table.rows.push_back(row);
    table.rows.back().input = "tiny/code";
  }
  const auto groups = groups_of(table, ErrorOn::kRelativeL2, {0.1});
  ASSERT_EQ(groups.size(), 3u);
  EXPECT_EQ(groups[0].seqlen, 512);
  EXPECT_EQ(groups[1].name, "tiny/book");
  EXPECT_EQ(groups[2].name, "tiny/code");
}

TEST(MatchErrors, on_the_held_out_loss_cost_is_attention_and_planning_of_the_model) {
  ResultTable table = sample_prefill();
  for (ResultRow& row : table.rows) {
    row.metrics["attention_ms"] = row.method == "dense" ? 60.0 : 10.0;
    row.metrics["planning_ms"] = row.method == "dense" ? 0.0 : 5.0;
  }
  const auto groups = groups_of(table, ErrorOn::kHeldOutLoss, {0.01, 0.05});
  ASSERT_EQ(groups.size(), 1u);
  EXPECT_EQ(groups[0].name, "tiny-llama");
  EXPECT_FALSE(cell_of(groups[0], "s2o", 0).speedup_vs_dense.value) << "it loses .05 nats";
  EXPECT_NEAR(*cell_of(groups[0], "s2o", 1).speedup_vs_dense.value, 4.0, 1e-9);
  EXPECT_NEAR(*cell_of(groups[0], "s2o", 1).least_density.value, 0.25, 1e-9);
}

// In whatever order rows stand, times are compared with those of the stored numbers.
TEST(MatchErrors, dense_in_8_bits_is_compared_like_any_other) {
  ResultTable table = sample_prefill();
  for (ResultRow& row : table.rows) {
    row.metrics["attention_ms"] = row.method == "dense" ? 60.0 : 10.0;
    row.metrics["planning_ms"] = row.method == "dense" ? 0.0 : 5.0;
    row.metrics["compute_density"] = row.method == "dense" ? 1.0 : 0.25;
  }
  std::vector<ResultRow> quantised;
  for (const ResultRow& row : table.rows) {
    if (row.method != "dense") continue;
    ResultRow& other = quantised.emplace_back(row);
    other.params = {{"compute", "fp8"}};
    other.metrics["attention_ms"] = 30.0;
    other.metrics["exact_match"] = 0.0;
  }
  for (const bool in_front : {false, true}) {
    ResultTable both = table;
    both.rows.insert(in_front ? both.rows.begin() : both.rows.end(), quantised.begin(),
                     quantised.end());
    const auto groups = groups_of(both, ErrorOn::kHeldOutLoss, {0.05});
    EXPECT_NEAR(*cell_of(groups[0], "s2o").speedup_vs_dense.value, 4.0, 1e-9) << in_front;
    EXPECT_NEAR(*cell_of(groups[0], "dense").speedup_vs_dense.value, 2.0, 1e-9) << in_front;
    const auto by_accuracy = groups_of(both, ErrorOn::kAccuracy, {0.25});
    ASSERT_EQ(by_accuracy.size(), 1u) << in_front;
    EXPECT_TRUE(cell_of(by_accuracy[0], "s2o").least_density.value) << in_front;
  }
}

TEST(MatchErrors, on_the_divergence_a_better_loss_is_no_excuse) {
  ResultTable table = sample_prefill();
  for (ResultRow& row : table.rows) {
    if (row.method != "s2o" || !row.prefill.task.empty()) continue;
    row.metrics["held_out_loss"] = 3.6;  // dense has 3.7
    row.metrics["kl_from_dense"] = 0.03;
  }
  EXPECT_TRUE(
      cell_of(groups_of(table, ErrorOn::kHeldOutLoss, {0.01})[0], "s2o").least_density.value);
  EXPECT_FALSE(cell_of(groups_of(table, ErrorOn::kKl, {0.01})[0], "s2o").least_density.value);
  EXPECT_TRUE(cell_of(groups_of(table, ErrorOn::kKl, {0.05})[0], "s2o").least_density.value);
}

TEST(MatchErrors, on_accuracy_units_are_tasks_that_dense_answers) {
  ResultTable table = sample_prefill();
  for (int i = 0; i < 4; ++i) {
    for (const char* method : {"dense", "s2o"}) {
      table.rows.push_back(needle_row(method, i, 2));
      table.rows.back().prefill.task = "too hard";
    }
  }
  for (ResultRow& row : table.rows) row.metrics["compute_density"] = 0.2;
  const auto groups = groups_of(table, ErrorOn::kAccuracy, {0.1, 0.25});
  ASSERT_EQ(groups.size(), 1u);
  EXPECT_THAT(groups[0].units, ElementsAre("niah"));
  EXPECT_FALSE(cell_of(groups[0], "s2o", 0).least_density.value) << "one of four is lost";
  EXPECT_NEAR(*cell_of(groups[0], "s2o", 1).least_density.value, 0.2, 1e-9);
}

TEST(MatchErrors, accuracy_is_compared_on_the_prompts_that_both_have) {
  ResultTable table;
  for (int i = 0; i < 3; ++i) {
    table.rows.push_back(needle_row("dense", i, i == 0 ? 2 : 7));
    if (i < 2) table.rows.push_back(needle_row("s2o", i, i == 0 ? 2 : 7));
  }
  for (ResultRow& row : table.rows) row.metrics["compute_density"] = 0.2;
  const auto groups = groups_of(table, ErrorOn::kAccuracy, {0.01});
  EXPECT_TRUE(cell_of(groups[0], "s2o").least_density.value) << "it answers what dense answers";
}

TEST(MatchedErrorReport, results_without_the_error_say_what_measures_it) {
  EXPECT_THAT([] { matched_error_report(two_layers(), ErrorOn::kHeldOutLoss, sample_options()); },
              ThrowsMessage<ConfigError>(HasSubstr("s2o prefill")));
  EXPECT_THAT([] { matched_error_report(two_layers(), ErrorOn::kMse, sample_options()); },
              ThrowsMessage<ConfigError>(HasSubstr("--errors")));
}

TEST(MatchedErrorReport, tasks_that_dense_fails_are_named) {
  ResultTable table;
  for (const char* method : {"dense", "s2o"}) table.rows.push_back(needle_row(method, 0, 2));
  for (ResultRow& row : table.rows) row.metrics["compute_density"] = 0.2;
  EXPECT_THAT([&] { matched_error_report(table, ErrorOn::kAccuracy, sample_options()); },
              ThrowsMessage<ConfigError>(HasSubstr("niah of 1024 tokens 0 of 1")));
  table.rows.erase(table.rows.begin());
  EXPECT_THAT([&] { matched_error_report(table, ErrorOn::kAccuracy, sample_options()); },
              ThrowsMessage<ConfigError>(HasSubstr("dense: not run")));
}

TEST(MatchedErrorReport, units_that_miss_the_target_are_counted) {
  MatchOptions options = sample_options();
  options.errors = {0.1};
  const Report report = matched_error_report(two_layers(), ErrorOn::kRelativeL2, options);
  EXPECT_EQ(report.view[0].rows[0][1].text, "5.00 (1)");
  EXPECT_EQ(report.view[0].rows[1][1].text, "n/a");
}

TEST(ErrorMetric, unknown_names_list_what_there_is) {
  EXPECT_THAT([] { parse_error_metric("l2"); },
              ThrowsMessage<ConfigError>(
                  HasSubstr("mse, relative_l2, kl_from_dense, held_out_loss, accuracy")));
}

}  // namespace
}  // namespace s2o
