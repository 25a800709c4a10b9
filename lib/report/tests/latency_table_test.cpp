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
  ASSERT_EQ(report.view.size(), 2u);
  const ReportTable& table = report.view[1];
  EXPECT_EQ(table.name, "break_even");
  // From 0.5 to 2 over a factor of four in length: 1 in the middle of both logarithms.
  EXPECT_EQ(cell_of(table, "blocks", "break_even_seqlen").value, 2048);
  EXPECT_EQ(cell_of(table, "s2o", "break_even_seqlen").text, "<= 1024");
  EXPECT_TRUE(cell_of(table, "window", "break_even_seqlen").value.is_null());
}

TEST(LatencyTable, one_length_has_no_break_even) {
  ResultTable table = results_at_two_lengths();
  std::erase_if(table.rows, [](const ResultRow& row) { return row.seqlen == 1024; });
  EXPECT_EQ(latency().build(table, sample_options()).view.size(), 1u);
}

TEST(LatencyTable, peers_of_the_same_shape_are_compared) {
  MatchOptions options = sample_options();
  options.peers = {{"torch_cudnn", 4096, 2, 1, 64, 35.0}, {"torch_cudnn", 1024, 8, 1, 64, 35.0}};
  const Report report = latency().build(results_at_two_lengths(), options);
  const ReportTable& table = report.view[0];
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
