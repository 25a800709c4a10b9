// `s2o eval` from the outside: results, streams, resume, determinism, golden numbers.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdlib>
#include <sstream>

#include "app/tests/run_s2o.h"
#include "lib/report/results_file.h"

namespace s2o {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;
using testing_support::AppTest;
using testing_support::Outcome;
using testing_support::read_file;
using testing_support::RunningS2o;
using testing_support::small_config;
using testing_support::write_file;
using Json = nlohmann::ordered_json;

// Results without what depends on the clock.
Json without_times(Json document) {
  document["context"].erase("started_at");
  for (Json& row : document["rows"]) {
    for (const char* name :
         {"plan_latency_ms", "attention_latency_ms", "total_latency_ms", "latency_p10_ms",
          "latency_p90_ms", "speedup_vs_dense", "effective_tflops"}) {
      row.erase(name);
    }
  }
  return document;
}

class EvalTest : public AppTest {
 protected:
  Json results(const std::string& out) const {
    return Json::parse(read_file(folder_ / out / "results.json"));
  }
};

TEST_F(EvalTest, results_are_on_stdout_logs_on_stderr) {
  const Outcome quiet = run({"eval", "-c", "small.json", "--out", "out"});
  EXPECT_EQ(quiet.exit_code, 0) << quiet.err;
  EXPECT_EQ(quiet.err, "");
  EXPECT_THAT(quiet.out, HasSubstr("streaming_llm  window=64"));
  const Outcome verbose = run({"eval", "-c", "small.json", "--out", "out", "-v", "--resume"});
  EXPECT_THAT(verbose.err, HasSubstr("all 10 rows are there"));
  EXPECT_EQ(verbose.out, quiet.out);
}

TEST_F(EvalTest, json_on_stdout_is_the_file) {
  const Outcome outcome = run({"eval", "-c", "small.json", "--out", "out", "--format", "json"});
  EXPECT_EQ(outcome.out, read_file(folder_ / "out/results.json"));
  const Json document = Json::parse(outcome.out);
  EXPECT_EQ(document["schema_version"], 1);
  const Json& context = document["context"];
  for (const char* name : {"name", "s2o_version", "git_commit", "started_at", "device", "driver",
                           "cuda", "sm_clock_mhz", "seed", "config", "config_hash"}) {
    EXPECT_TRUE(context.contains(name)) << name;
  }
  EXPECT_EQ(context["name"], "small");
  EXPECT_EQ(document["rows"].size(), 10u);
}

TEST_F(EvalTest, results_go_to_a_folder_of_the_name_by_default) {
  EXPECT_EQ(run({"eval", "-c", "small.json", "--set", "name=mine"}).exit_code, 0);
  EXPECT_TRUE(exists("results/mine/results.json"));
  EXPECT_TRUE(exists("results/mine/results.h5"));
}

TEST_F(EvalTest, tau_zero_is_dense) {
  run({"eval", "-c", "small.json", "--out", "out"});
  const Json document = results("out");
  for (const Json& row : document["rows"]) {
    if (row["method"] != "s2o" || row["params"]["tau"] != 0.0) continue;
    EXPECT_LT(row["relative_l2"].get<double>(), 1e-5);
    EXPECT_EQ(row["compute_density"], 1.0);
  }
}

TEST_F(EvalTest, two_runs_agree_in_every_byte_but_the_times) {
  run({"eval", "-c", "small.json", "--out", "a", "--set", "save_outputs=true"});
  run({"eval", "-c", "small.json", "--out", "b", "--set", "save_outputs=true"});
  EXPECT_EQ(without_times(results("a")).dump(), without_times(results("b")).dump());
  const ResultTable a = read_results(folder_ / "a/results.h5");
  const ResultTable b = read_results(folder_ / "b/results.h5");
  for (std::size_t i = 0; i < a.rows.size(); ++i) {
    EXPECT_EQ(a.rows[i].per_head, b.rows[i].per_head);
    EXPECT_EQ(a.rows[i].stop_steps, b.rows[i].stop_steps);
  }
  // The outputs lie in both files as they are; everything else is small.
  EXPECT_EQ(std::filesystem::file_size(folder_ / "a/results.h5"),
            std::filesystem::file_size(folder_ / "b/results.h5"));
}

TEST_F(EvalTest, set_changes_values_and_sweeps) {
  run({"eval", "-c", "small.json", "--out", "out", "--set", "methods.s2o.tau=0.5,0.2,0.1", "--set",
       "inputs.0.seqlen=300", "--set", "seed=4"});
  const Json document = results("out");
  ASSERT_EQ(document["rows"].size(), 6u);
  EXPECT_EQ(document["rows"][4]["params"]["tau"], 0.2);
  EXPECT_EQ(document["rows"][4]["seqlen"], 300);
  EXPECT_EQ(document["context"]["config"]["methods"][2]["tau"], Json({0.5, 0.2, 0.1}));
  EXPECT_EQ(document["context"]["seed"], 4);
}

TEST_F(EvalTest, paths_are_relative_to_the_config) {
  std::filesystem::create_directory(folder_ / "deep");
  run({"synth", "--seqlen", "64", "--num-q-heads", "2", "--num-kv-heads", "1", "--head-dim", "16",
       "--out", "deep/x.safetensors"});
  Json config = small_config();
  config["inputs"] = Json::parse(R"([{"source": "dump", "path": "x.safetensors"}])");
  write_config("deep/dump.json", config);
  const Outcome outcome = run({"eval", "-c", "deep/dump.json", "--out", "out"});
  EXPECT_EQ(outcome.exit_code, 0) << outcome.err;
  EXPECT_EQ(results("out")["rows"][0]["input"], "dump/x");
}

TEST_F(EvalTest, interrupted_run_goes_on_where_it_was) {
  run({"eval", "-c", "small.json", "--out", "whole"});
  const Outcome stopped =
      run({"eval", "-c", "small.json", "--out", "out", "--stop-after-rows", "4"});
  EXPECT_EQ(stopped.exit_code, 130);
  EXPECT_THAT(stopped.err, HasSubstr("4 of 10 rows are in out"));
  EXPECT_EQ(results("out")["rows"].size(), 4u);
  const Outcome resumed = run({"eval", "-c", "small.json", "--out", "out", "--resume", "-v"});
  EXPECT_EQ(resumed.exit_code, 0) << resumed.err;
  EXPECT_THAT(resumed.err, HasSubstr("4 of 10 rows are there"));
  Json whole = without_times(results("whole"));
  EXPECT_EQ(without_times(results("out")).dump(), whole.dump());
  EXPECT_FALSE(exists("out/rows.partial.jsonl"));
}

TEST_F(EvalTest, signal_from_outside_ends_the_run_with_130_and_keeps_the_rows) {
  Json config = small_config();
  config["inputs"][0]["seqlen"] = 2048;
  // The first row takes a moment, the others far longer than the test waits.
  config["methods"][0] = {{"name", "streaming_llm"}, {"sink", 1}, {"window", 1}};
  config["methods"][1]["window"] = {2000, 2001, 2002, 2003};
  config["timing"] = {{"cpu_repeats", 60}};
  write_config("long.json", config);
  for (const int signal_number : {SIGINT, SIGTERM}) {
    RunningS2o process(folder_.path(), {"eval", "-c", "long.json", "--out", "out"});
    const auto rows_on_disk = [this] {
      if (!exists("out/rows.partial.jsonl")) return std::ptrdiff_t{0};
      const std::string journal = read_file(folder_ / "out/rows.partial.jsonl");
      return std::count(journal.begin(), journal.end(), '\n');
    };
    while (process.is_running() && rows_on_disk() < 2) usleep(1000);  // the head, and a row
    process.send(signal_number);
    usleep(2000);  // handled by now; `timeout` sends a second one, to the group
    process.send(signal_number);
    const Outcome outcome = process.wait();
    EXPECT_EQ(outcome.exit_code, 130) << outcome.err;
    EXPECT_THAT(outcome.err, HasSubstr("interrupted"));
    EXPECT_GE(results("out")["rows"].size(), 1u);
    EXPECT_LT(results("out")["rows"].size(), 7u);
    std::filesystem::remove_all(folder_ / "out");
  }
}

TEST_F(EvalTest, run_that_was_killed_goes_on_from_its_journal) {
  run({"eval", "-c", "small.json", "--out", "whole"});
  run({"eval", "-c", "small.json", "--out", "out", "--stop-after-rows", "3"});
  // What kill -9 in the middle of a line would leave.
  std::filesystem::remove(folder_ / "out/results.json");
  std::filesystem::remove(folder_ / "out/results.h5");
  const std::string journal = read_file(folder_ / "out/rows.partial.jsonl");
  write_file(folder_ / "out/rows.partial.jsonl", journal.substr(0, journal.size() - 40));
  const Outcome resumed = run({"eval", "-c", "small.json", "--out", "out", "--resume", "-v"});
  EXPECT_EQ(resumed.exit_code, 0) << resumed.err;
  EXPECT_THAT(resumed.err, HasSubstr("was cut off and is left out"));
  EXPECT_THAT(resumed.err, HasSubstr("2 of 10 rows are there"));
  EXPECT_EQ(without_times(results("out")).dump(), without_times(results("whole")).dump());
}

TEST_F(EvalTest, resume_with_another_config_is_refused_and_changes_nothing) {
  run({"eval", "-c", "small.json", "--out", "out"});
  const std::string before = read_file(folder_ / "out/results.json");
  const Outcome outcome =
      run({"eval", "-c", "small.json", "--out", "out", "--resume", "--set", "methods.s2o.tau=0.7"});
  EXPECT_EQ(outcome.exit_code, 2);
  EXPECT_THAT(outcome.err, HasSubstr("they differ in: methods[2].tau"));
  EXPECT_EQ(read_file(folder_ / "out/results.json"), before);
}

TEST_F(EvalTest, new_run_keeps_the_previous_results) {
  run({"eval", "-c", "small.json", "--out", "out"});
  const std::string before = read_file(folder_ / "out/results.json");
  const Outcome outcome = run({"eval", "-c", "small.json", "--out", "out", "--set", "seed=1"});
  EXPECT_THAT(outcome.err, HasSubstr("kept as results.previous.json"));
  EXPECT_EQ(read_file(folder_ / "out/results.previous.json"), before);
}

TEST_F(EvalTest, plans_of_all_methods_pass_their_checks) {
  Json config = small_config();
  config["methods"] = Json::array();
  const Json list = Json::parse(run({"list", "methods", "--format", "json"}).out);
  for (const Json& method : list["methods"]) {
    config["methods"].push_back({{"name", method["name"]}});
  }
  write_config("all.json", config);
  const Outcome outcome = run({"eval", "-c", "all.json", "--out", "out", "--check"});
  EXPECT_EQ(outcome.exit_code, 0) << outcome.err;
}

// The numbers of one small config of the methods that need no tuning. After a change that is meant:
// S2O_UPDATE_GOLDEN=1 build/cpu/app_tests --gtest_filter='*golden*', then read the difference.
TEST_F(EvalTest, numbers_of_a_small_config_are_golden) {
  const std::vector<std::string> columns = {"mse",         "relative_l2",     "cosine",
                                            "mass_recall", "compute_density", "pair_density"};
  write_config("golden.json", Json::parse(R"({
    "dtype": "fp32", "device": "cpu",
    "inputs": [{"source": "synthetic", "pattern": "mixed", "seqlen": 700, "num_q_heads": 4,
                "num_kv_heads": 2, "head_dim": 64}],
    "methods": [{"name": "dense"}, {"name": "streaming_llm", "sink": 64, "window": [128, 300]},
                {"name": "oracle_block", "density": [0.6, 0.3]},
                {"name": "oracle_token", "density": [0.6, 0.3]},
                {"name": "s2o", "segment_size": 128, "tau": [0.02, 0.2]}]})"));
  ASSERT_EQ(run({"eval", "-c", "golden.json", "--out", "out"}).exit_code, 0);
  Json found = Json::array();
  const Json document = results("out");
  for (const Json& row : document["rows"]) {
    Json kept = {{"method", row["method"]}, {"params", row["params"]}};
    for (const std::string& column : columns) kept[column] = row[column];
    found.push_back(kept);
  }
  const auto path = std::filesystem::path(S2O_SOURCE_DIR) / "app/tests/golden/small.json";
  if (std::getenv("S2O_UPDATE_GOLDEN") != nullptr) {
    write_file(path, found.dump(1) + "\n");
    return;
  }
  const Json golden = Json::parse(read_file(path));
  ASSERT_EQ(found.size(), golden.size());
  for (std::size_t i = 0; i < golden.size(); ++i) {
    EXPECT_EQ(found[i]["method"], golden[i]["method"]);
    for (const auto& [name, value] : found[i]["params"].items()) {
      EXPECT_EQ(golden[i]["params"].value(name, Json()), value) << i << " " << name;
    }
    for (const std::string& column : columns) {
      // Roundings differ between machines: relative, and absolute below the noise of fp32.
      const auto expected = golden[i][column].get<double>();
      EXPECT_NEAR(found[i][column].get<double>(), expected, 1e-3 * std::abs(expected) + 1e-5)
          << golden[i]["method"] << golden[i]["params"] << " " << column;
    }
  }
}

}  // namespace
}  // namespace s2o
