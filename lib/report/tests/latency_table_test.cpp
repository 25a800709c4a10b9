#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>

#include "lib/core/error.h"
#include "lib/report/paper_table.h"
#include "lib/report/tests/sample_results.h"
#include "lib/testing/files.h"

namespace s2o {
namespace {

using ::testing::HasSubstr;
using ::testing::ThrowsMessage;
using testing_support::TempFolder;

// Blocks of one threshold: half as fast as dense attention at 1,024 tokens, twice as fast at 4,096.
// S2O is faster at both, the window at neither.
ResultTable results_at_two_lengths() {
  ResultTable table;
  const auto add = [&table](const std::string& method, nlohmann::ordered_json params,
                            std::int64_t seqlen, double speedup) {
    ResultRow row = sample_row({method, std::move(params), 0.2, 1e-4, 0, "tiny/book", seqlen});
    row.planner = "cuda";
    row.metrics["total_latency_ms"] = 10.0;
    row.metrics["speedup_vs_dense"] = speedup;
    row.metrics["peak_workspace_bytes"] = 4096.0;
    table.rows.push_back(row);
  };
  for (const std::int64_t seqlen : {4096, 1024}) {
    const bool is_long = seqlen == 4096;
    add("dense", nlohmann::ordered_json::object(), seqlen, 1.0);
    add("window", {{"sink", 128}, {"window", 512}}, seqlen, is_long ? 0.9 : 0.5);
    add("blocks", {{"threshold", 0.9}, {"compensation", "none"}}, seqlen, is_long ? 2.0 : 0.5);
    add("s2o", {{"tau", 0.01}, {"segment_size", 1024}}, seqlen, is_long ? 8.0 : 3.0);
  }
  return table;
}

const PaperTable& latency() { return find_paper_table("latency"); }

const ReportTable& part_of(const Report& report, const std::string& name) {
  for (const ReportTable& part : report.view) {
    if (part.name == name) return part;
  }
  ADD_FAILURE() << "no section " << name;
  return report.view.front();
}

// The cell of a column in the row of a method.
ReportCell cell_of(const ReportTable& table, const std::string& method, const std::string& column,
                   std::int64_t seqlen = 0) {
  std::size_t at = 0;
  while (table.columns.at(at).name != column) ++at;
  for (const auto& row : table.rows) {
    std::string label;
    std::int64_t length = seqlen;
    for (std::size_t i = 0; i < row.size(); ++i) {
      if (table.columns[i].name == "method") label = row[i].text;
      if (table.columns[i].name == "seqlen") length = row[i].value.get<std::int64_t>();
    }
    if (label.starts_with(method) && length == seqlen) return row[at];
  }
  ADD_FAILURE() << "no row of " << method;
  return missing_cell();
}

TEST(LatencyTable, break_even_is_interpolated_between_lengths) {
  const Report report = latency().build(results_at_two_lengths(), sample_options());
  const ReportTable& table = part_of(report, "break_even");
  // From 0.5 to 2 over a factor of four in length: 1 in the middle of both logarithms.
  EXPECT_EQ(cell_of(table, "blocks", "break_even_seqlen").value, 2048);
  EXPECT_EQ(cell_of(table, "s2o", "break_even_seqlen").text, "<= 1024");
  EXPECT_TRUE(cell_of(table, "window", "break_even_seqlen").value.is_null());
}

TEST(LatencyTable, one_length_has_no_break_even) {
  ResultTable table = results_at_two_lengths();
  std::erase_if(table.rows, [](const ResultRow& row) { return row.seqlen == 1024; });
  const Report report = latency().build(table, sample_options());
  for (const ReportTable& part : report.view) EXPECT_NE(part.name, "break_even");
}

// Three settings of S2O: the fastest errs by 0.3, the next by 0.1, the slowest by 0.04; blocks of
// one threshold that err by 0.2; a window that errs by 0.5 and was not timed at 0.02.
ResultTable results_of_several_errors() {
  ResultTable table;
  const auto add = [&table](const std::string& method, nlohmann::ordered_json params, double error,
                            std::optional<double> total_ms) {
    ResultRow row = sample_row({method, std::move(params), 0.2, error * error});
    row.metrics["relative_l2"] = error;
    row.metrics["total_latency_ms"] = total_ms;
    row.metrics["speedup_vs_dense"] = total_ms ? std::optional(40.0 / *total_ms) : std::nullopt;
    table.rows.push_back(row);
  };
  add("dense", nlohmann::ordered_json::object(), 0.0, 40.0);
  add("window", {{"sink", 128}, {"window", 512}}, 0.5, 2.0);
  add("window", {{"sink", 128}, {"window", 3968}}, 0.02, std::nullopt);
  add("blocks", {{"threshold", 0.9}, {"compensation", "none"}}, 0.2, 20.0);
  add("s2o", {{"tau", 0.1}, {"segment_size", 1024}}, 0.3, 4.0);
  add("s2o", {{"tau", 0.03}, {"segment_size", 1024}}, 0.1, 5.0);
  add("s2o", {{"tau", 0.01}, {"segment_size", 1024}}, 0.04, 8.0);
  return table;
}

TEST(LatencyTable, holds_the_comparison_at_equal_error) {
  MatchOptions options = sample_options();
  options.errors = {0.2};
  const Report report = latency().build(results_of_several_errors(), options);
  EXPECT_NEAR(cell_of(part_of(report, "matched_error"), "blocks", "0.2").value.get<double>(), 2.0,
              1e-9);
}

TEST(LatencyTable, settings_with_default_parameters_are_marked) {
  const Report report = latency().build(results_of_several_errors(), sample_options());
  const ReportTable& table = part_of(report, "latency");
  EXPECT_EQ(cell_of(table, "s2o tau=0.01", "default", 1024).text, "yes");
  EXPECT_EQ(cell_of(table, "s2o tau=0.03", "default", 1024).value, false);
}

TEST(LatencyTable, exponents_are_fitted_from_32768_on) {
  ResultTable results;
  for (const double seqlen : {8192.0, 32768.0, 131072.0, 524288.0}) {
    ResultRow row = sample_row({"s2o", {{"tau", 0.01}, {"segment_size", 1024}}, 0.2, 1e-4});
    row.seqlen = static_cast<std::int64_t>(seqlen);
    // Far off the power laws where launches dominate; that length must not count.
    const bool is_short = seqlen < 32768.0;
    row.metrics["plan_latency_ms"] = is_short ? 9.0 : seqlen / 32768.0;
    row.metrics["attention_latency_ms"] = is_short ? 9.0 : std::pow(seqlen / 32768.0, 2.0);
    row.metrics["total_latency_ms"] = is_short ? 18.0 : std::pow(seqlen / 32768.0, 1.5);
    results.rows.push_back(row);
  }
  const Report report = latency().build(results, sample_options());
  const ReportTable& table = part_of(report, "growth");
  EXPECT_EQ(cell_of(table, "s2o", "seqlens").text, "32768 131072 524288");
  EXPECT_NEAR(cell_of(table, "s2o", "plan_exponent").value.get<double>(), 1.0, 1e-9);
  EXPECT_NEAR(cell_of(table, "s2o", "attention_exponent").value.get<double>(), 2.0, 1e-9);
  EXPECT_NEAR(cell_of(table, "s2o", "total_exponent").value.get<double>(), 1.5, 1e-9);
}

TEST(LatencyTable, planning_is_set_against_what_it_must_do) {
  ResultTable results = results_of_several_errors();
  for (ResultRow& row : results.rows) {
    if (row.method != "s2o") continue;
    row.metrics["plan_latency_ms"] = row.params.at("tau") == 0.1 ? 2.0 : 3.5;
    row.metrics["plan_flops"] = 6e9;
    row.metrics["plan_bytes"] = 9e9;
  }
  const Report report = latency().build(results, sample_options());
  const ReportTable& table = part_of(report, "planning_cost");
  ASSERT_EQ(table.rows.size(), 1u);  // three settings of one cost; the others do not say theirs
  EXPECT_EQ(cell_of(table, "s2o", "settings", 1024).value, 3);
  EXPECT_EQ(cell_of(table, "s2o", "plan_latency_ms", 1024).value, 3.0);
  EXPECT_EQ(cell_of(table, "s2o", "plan_flops", 1024).value, 6.0);
  EXPECT_EQ(cell_of(table, "s2o", "plan_tflops", 1024).value, 2.0);
  EXPECT_EQ(cell_of(table, "s2o", "plan_bandwidth", 1024).value, 3000.0);
}

TEST(LatencyTable, peers_of_the_same_shape_are_compared) {
  MatchOptions options = sample_options();
  options.peers = {{"torch_cudnn", 4096, 2, 1, 64, 35.0}, {"torch_cudnn", 1024, 8, 1, 64, 35.0}};
  const Report report = latency().build(results_at_two_lengths(), options);
  const ReportTable& table = part_of(report, "latency");
  EXPECT_EQ(cell_of(table, "s2o", "speedup_vs_torch_cudnn", 4096).value, 3.5);
  EXPECT_TRUE(cell_of(table, "s2o", "speedup_vs_torch_cudnn", 1024).value.is_null());
  EXPECT_EQ(cell_of(table, "s2o", "planner", 4096).text, "cuda");
}

TEST(PeerTimes, rows_with_an_error_are_left_out) {
  const TempFolder folder;
  const auto file = folder.path() / "peers.json";
  std::ofstream(file) << R"({"context": {}, "rows": [
    {"seqlen": 4096, "head_dim": 128, "num_q_heads": 32, "num_kv_heads": 8, "dtype": "bf16",
     "peer": "torch_cudnn", "ms": 1.5, "p10_ms": 1.4, "p90_ms": 1.6, "tflops": 90.0, "error": null},
    {"seqlen": 8192, "head_dim": 128, "num_q_heads": 32, "num_kv_heads": 8, "dtype": "bf16",
     "peer": "torch_cudnn", "ms": null, "error": "out of memory"}]})";
  const std::vector<PeerTime> times = read_peer_times(file);
  ASSERT_EQ(times.size(), 1u);
  EXPECT_EQ(times[0].seqlen, 4096);
  EXPECT_EQ(times[0].ms, 1.5);
}

TEST(PeerTimes, a_broken_file_is_named) {
  const TempFolder folder;
  const auto file = folder.path() / "peers.json";
  std::ofstream(file) << R"({"context": {}, "rows": [{"peer": "x", "ms": -1, "seqlen": 1,
    "num_q_heads": 1, "num_kv_heads": 1, "head_dim": 64}]})";
  EXPECT_THAT([&] { read_peer_times(file); },
              ThrowsMessage<ConfigError>(HasSubstr("peers.json: rows[0].ms: found -1")));
  std::ofstream(file) << R"({"rows": []})";
  EXPECT_THAT([&] { read_peer_times(file); },
              ThrowsMessage<ConfigError>(HasSubstr("no row has a time")));
}

}  // namespace
}  // namespace s2o
