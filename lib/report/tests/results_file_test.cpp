#include "lib/report/results_file.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "lib/core/error.h"
#include "lib/core/hdf5_handle.h"
#include "lib/metrics/metric.h"
#include "lib/report/eval_table.h"
#include "lib/report/results_json.h"
#include "lib/testing/files.h"

namespace s2o {
namespace {

using Json = nlohmann::ordered_json;
using ::testing::HasSubstr;
using testing_support::message_of;
using testing_support::read_file;
using testing_support::TempFolder;
using testing_support::write_file;

ResultRow full_row() {
  ResultRow row;
  row.input = "tiny/bücher";
  row.layer = 3;
  row.seqlen = 4096;
  row.num_q_heads = 2;
  row.num_kv_heads = 1;
  row.head_dim = 64;
  row.method = "s2o";
  row.params = {{"segment_size", 256}, {"tau", 0.1}, {"query_guide", "none"}};
  row.kernel = "attention_ref";
  row.backend = "cpu";
  double value = 0.1;
  for (const MetricColumn& column : metric_columns()) row.metrics[column.name] = value /= 3.0;
  row.metrics["peak_workspace_bytes"] = 123456789.0;
  row.metrics["latency_p10_ms"] = std::nullopt;
  row.per_head["mse"] = {1.0 / 3.0, std::numeric_limits<double>::quiet_NaN()};
  row.per_head["mass_recall"] = {0.5, 1.0};
  row.stop_steps = {1, 0, 7};
  return row;
}

ResultRow failed_row() {
  ResultRow row = full_row();
  row.num_q_heads = row.num_kv_heads = row.head_dim = 0;
  row.seqlen = 0;
  for (auto& [name, value] : row.metrics) value = std::nullopt;
  row.per_head.clear();
  row.stop_steps.clear();
  row.error = "layer \"3\": no such tensor,\nor two lines";
  return row;
}

ResultTable sample_table() {
  return {.context = {{"name", "test"},
                      {"seed", 3},
                      {"driver", nullptr},
                      {"config", {{"methods", {{{"name", "s2o"}, {"tau", {0.1, 0.2}}}}}}},
                      {"config_hash", "0123456789abcdef"}},
          .rows = {full_row(), failed_row()}};
}

void expect_equal(const ResultRow& a, const ResultRow& b, bool with_heads) {
  EXPECT_EQ(row_to_json(a), row_to_json(b));
  EXPECT_EQ(a.params, b.params);
  EXPECT_EQ(a.error, b.error);
  if (!with_heads) return;
  EXPECT_EQ(a.stop_steps, b.stop_steps);
  ASSERT_EQ(a.per_head.size(), b.per_head.size());
  for (const auto& [name, values] : a.per_head) {
    ASSERT_EQ(b.per_head.at(name).size(), values.size());
    for (std::size_t i = 0; i < values.size(); ++i) {
      const double other = b.per_head.at(name)[i];
      EXPECT_TRUE(values[i] == other || (std::isnan(values[i]) && std::isnan(other))) << name;
    }
  }
}

TEST(results_json, columns_are_those_of_the_contract_in_its_order) {
  const std::vector<std::string> expected = {"input",
                                             "layer",
                                             "seqlen",
                                             "num_q_heads",
                                             "num_kv_heads",
                                             "head_dim",
                                             "method",
                                             "params",
                                             "kernel",
                                             "backend",
                                             "planner",
                                             "input_id",
                                             "mse",
                                             "relative_l2",
                                             "max_abs_error",
                                             "cosine",
                                             "mass_recall",
                                             "lse_error",
                                             "sparsity",
                                             "compute_density",
                                             "pair_density",
                                             "plan_latency_ms",
                                             "attention_latency_ms",
                                             "total_latency_ms",
                                             "latency_p10_ms",
                                             "latency_p90_ms",
                                             "speedup_vs_dense",
                                             "effective_tflops",
                                             "peak_workspace_bytes",
                                             "plan_flops",
                                             "plan_bytes",
                                             "note",
                                             "error"};
  EXPECT_EQ(result_columns(), expected);
  std::vector<std::string> keys;
  const Json row = row_to_json(full_row());
  for (const auto& item : row.items()) keys.push_back(item.key());
  EXPECT_EQ(keys, expected);
}

TEST(results_json, unmeasured_and_unknown_values_are_null_and_bytes_are_integers) {
  const Json row = row_to_json(full_row());
  EXPECT_TRUE(row["latency_p10_ms"].is_null());
  EXPECT_TRUE(row["error"].is_null());
  EXPECT_EQ(row["peak_workspace_bytes"].dump(), "123456789");
  const Json failed = row_to_json(failed_row());
  EXPECT_TRUE(failed["head_dim"].is_null());
  EXPECT_TRUE(failed["mse"].is_null());
  ResultRow infinite = full_row();
  infinite.metrics["mse"] = std::numeric_limits<double>::infinity();
  EXPECT_TRUE(row_to_json(infinite)["mse"].is_null());
}

TEST(results_json, round_trip_keeps_every_bit) {
  const ResultTable table = sample_table();
  const ResultTable read = results_from_json(results_to_json(table), "test");
  EXPECT_EQ(read.context, table.context);
  ASSERT_EQ(read.rows.size(), 2u);
  for (std::size_t i = 0; i < 2; ++i) expect_equal(table.rows[i], read.rows[i], false);
  EXPECT_EQ(read.rows[0].metrics, table.rows[0].metrics);
}

TEST(results_json, metrics_of_other_builds_are_kept) {
  ResultTable table = sample_table();
  table.rows[0].metrics["zeta"] = 4.5;
  const ResultTable read = results_from_json(results_to_json(table), "test");
  EXPECT_EQ(read.rows[0].metrics.at("zeta"), 4.5);
}

TEST(results_json, text_that_is_not_utf8_does_not_cost_the_results) {
  ResultTable table = sample_table();
  table.rows[0].input = "caf\xe9";
  EXPECT_EQ(results_from_json(results_to_json(table), "test").rows.size(), 2u);
}

TEST(results_json, broken_documents_name_file_and_place) {
  const auto error = [](const std::string& text) {
    return message_of<InputError>([&] { results_from_json(text, "r.json"); });
  };
  EXPECT_THAT(error("{"), HasSubstr("r.json: line 1"));
  EXPECT_THAT(error("[]"), HasSubstr("r.json: key 'schema_version' is missing"));
  EXPECT_THAT(error(R"({"schema_version": 1, "context": {}})"), HasSubstr("key 'rows' is missing"));
  EXPECT_THAT(error(R"({"schema_version": 9, "context": {}, "rows": []})"),
              HasSubstr("r.json: schema_version is 9, expected 1"));
  EXPECT_THAT(error(R"({"schema_version": 1, "context": {}, "rows": [{}]})"),
              HasSubstr("r.json: rows[0]: column 'input' is missing"));
  Json row = row_to_json(full_row());
  row["layer"] = "three";
  const Json document = {{"schema_version", 1}, {"context", Json::object()}, {"rows", {row}}};
  EXPECT_THAT(error(document.dump()),
              HasSubstr("rows[0]: layer: found string, expected a whole number or null"));
}

TEST(results_hdf5, round_trip_keeps_rows_per_head_values_and_stop_steps) {
  const TempFolder folder;
  const ResultTable table = sample_table();
  write_results_hdf5(folder / "results.h5", table, {});
  const ResultTable read = read_results(folder.path());
  EXPECT_EQ(read.context, table.context);
  ASSERT_EQ(read.rows.size(), 2u);
  for (std::size_t i = 0; i < 2; ++i) expect_equal(table.rows[i], read.rows[i], true);
  EXPECT_TRUE(is_results_hdf5(folder / "results.h5"));
}

TEST(results_hdf5, equal_tables_give_equal_bytes) {
  const TempFolder folder;
  const RowOutputs outputs = [](std::size_t i) {
    return i == 0 ? std::vector<float>(2 * 4096 * 64, 0.5f) : std::vector<float>{};
  };
  write_results_hdf5(folder / "a.h5", sample_table(), outputs);
  write_results_hdf5(folder / "b.h5", sample_table(), outputs);
  EXPECT_EQ(read_file(folder / "a.h5"), read_file(folder / "b.h5"));
}

TEST(results_hdf5, table_without_rows_round_trips) {
  const TempFolder folder;
  ResultTable table = sample_table();
  table.rows.clear();
  write_results_hdf5(folder / "results.h5", table, {});
  EXPECT_TRUE(read_results(folder / "results.h5").rows.empty());
}

TEST(results_hdf5, truncated_and_foreign_files_are_refused) {
  const TempFolder folder;
  write_results_hdf5(folder / "results.h5", sample_table(), {});
  const std::string bytes = read_file(folder / "results.h5");
  for (const std::size_t size : {std::size_t{0}, std::size_t{100}, bytes.size() / 2}) {
    write_file(folder / "cut.h5", bytes.substr(0, size));
    const auto message = message_of<InputError>([&] { read_results(folder / "cut.h5"); });
    EXPECT_THAT(message, HasSubstr("cut.h5")) << size;
    EXPECT_FALSE(is_results_hdf5(folder / "cut.h5"));
  }
}

TEST(results_hdf5, every_flipped_byte_gives_a_table_or_an_input_error) {
  const TempFolder folder(testing_support::fast_temp_folder());
  ResultTable table = sample_table();
  table.rows.resize(1);
  write_results_hdf5(folder / "results.h5", table, {});
  const std::string bytes = read_file(folder / "results.h5");
  for (std::size_t i = 0; i < bytes.size(); i += 101) {
    std::string broken = bytes;
    broken[i] = static_cast<char>(~broken[i]);
    write_file(folder / "broken.h5", broken);
    try {
      read_results(folder / "broken.h5");
    } catch (const InputError&) {
    }
  }
}

TEST(read_results, missing_files_and_unknown_extensions_are_input_errors) {
  const TempFolder folder;
  EXPECT_THAT(message_of<InputError>([&] { read_results(folder / "x.json"); }),
              HasSubstr("no such file"));
  EXPECT_THAT(message_of<InputError>([&] { read_results(folder.path()); }),
              HasSubstr("holds neither results.h5 nor results.json"));
  write_file(folder / "x.csv", "");
  EXPECT_THAT(message_of<InputError>([&] { read_results(folder / "x.csv"); }),
              HasSubstr("unknown extension '.csv'"));
}

TEST(results_hdf5, links_to_other_files_are_not_followed) {
  const TempFolder folder;
  write_results_hdf5(folder / "a.h5", sample_table(), {});
  write_results_hdf5(folder / "b.h5", sample_table(), {});
  for (const char* place : {"/table/mse", "/context", "/rows/0/per_head/mse"}) {
    std::filesystem::copy_file(folder / "a.h5", folder / "linked.h5",
                               std::filesystem::copy_options::overwrite_existing);
    {
      const Hdf5QuietErrors quiet;
      const Hdf5Handle file(H5Fopen((folder / "linked.h5").c_str(), H5F_ACC_RDWR, H5P_DEFAULT));
      ASSERT_GE(H5Ldelete(file.get(), place, H5P_DEFAULT), 0);
      ASSERT_GE(H5Lcreate_external("b.h5", place, file.get(), place, H5P_DEFAULT, H5P_DEFAULT), 0);
    }
    EXPECT_THAT(message_of<InputError>([&] { read_results(folder / "linked.h5"); }),
                HasSubstr(place))
        << place;
  }
}

TEST(results_hdf5, lengths_that_the_file_does_not_hold_take_no_memory) {
  const TempFolder folder;
  write_results_hdf5(folder / "a.h5", sample_table(), {});
  const std::string bytes = read_file(folder / "a.h5");
  // Every pair of bytes at its largest: some of them are lengths.
  for (std::size_t at = 0; at + 2 < bytes.size(); at += 997) {
    std::string damaged = bytes;
    damaged[at] = damaged[at + 1] = '\xff';
    write_file(folder / "x.h5", damaged);
    try {
      read_results(folder / "x.h5");
    } catch (const InputError&) {
    }
  }
}

TEST(render_results, names_cannot_break_a_table) {
  ResultTable table = sample_table();
  table.rows.resize(1);
  table.rows[0].input = "two\nlines|\x1b[31m";
  for (const ReportFormat format :
       {ReportFormat::kText, ReportFormat::kCsv, ReportFormat::kMarkdown}) {
    const std::string text = render_results(table, format);
    EXPECT_THAT(text, HasSubstr("two\\"));
    EXPECT_EQ(text.find("two\n"), std::string::npos);
    EXPECT_EQ(text.find('\x1b'), std::string::npos);
  }
}

TEST(render_results, csv_has_every_column_and_quotes_what_needs_it) {
  const std::string csv = render_results(sample_table(), ReportFormat::kCsv);
  EXPECT_EQ(csv.substr(0, csv.find('\n')).find("input,layer,seqlen,num_q_heads"), 0u);
  EXPECT_THAT(csv, HasSubstr("\"{\"\"segment_size\"\":256,"));
  EXPECT_THAT(csv, HasSubstr("\"layer \"\"3\"\": no such tensor,\\nor two lines\""));
}

TEST(render_results, json_is_the_results_file) {
  EXPECT_EQ(render_results(sample_table(), ReportFormat::kJson), results_to_json(sample_table()));
}

TEST(render_results, text_shows_knob_and_failures) {
  const std::string text = render_results(sample_table(), ReportFormat::kText);
  EXPECT_THAT(text, HasSubstr("tiny/bücher, layer 3, seqlen 4096"));
  EXPECT_THAT(text, HasSubstr("tau=0.1"));
  EXPECT_THAT(text, HasSubstr("n/a"));
  EXPECT_THAT(text, HasSubstr("failed: s2o tau=0.1 on tiny/bücher, layer 3"));
}

TEST(render_results, parameters_that_vary_are_shown_and_shared_ones_are_notes) {
  ResultTable table = sample_table();
  table.rows = {full_row(), full_row()};
  table.rows[0].params["segment_size"] = table.rows[1].params["segment_size"] = 512;
  table.rows[1].params["query_guide"] = "prefix_mean_key";
  const std::string text = render_results(table, ReportFormat::kText);
  EXPECT_THAT(text, HasSubstr("tau=0.1 query_guide=none"));
  EXPECT_THAT(text, HasSubstr("tau=0.1 query_guide=prefix_mean_key"));
  EXPECT_THAT(text, HasSubstr("s2o: segment_size=512"));
}

}  // namespace
}  // namespace s2o
