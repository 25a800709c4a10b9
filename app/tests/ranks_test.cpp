// Sweeps over ranks: `mpirun -n N s2o eval|prefill` leaves what one process leaves, whatever
// happens to single ranks. Skipped where no MPI is.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <chrono>
#include <regex>
#include <thread>

#include "app/tests/run_s2o.h"
#include "lib/ranks/mpi.h"
#include "lib/report/results_file.h"
#include "lib/report/results_json.h"

namespace s2o {
namespace {

using Json = nlohmann::ordered_json;
using ::testing::HasSubstr;
using ::testing::Not;
using testing_support::AppTest;
using testing_support::data_folder;
using testing_support::Outcome;
using testing_support::read_file;
using testing_support::RunningS2o;
using testing_support::RunSettings;
using testing_support::write_file;
using Arguments = std::vector<std::string>;

bool is_time_or_rank(const std::string& column) {
  return column.ends_with("_ms") || column == "speedup_vs_dense" || column == "effective_tflops" ||
         column == "rank";
}

// Without what no two runs share.
std::vector<Json> comparable_rows(const std::filesystem::path& file) {
  std::vector<Json> rows;
  for (const auto results = read_results(file); const ResultRow& row : results.rows) {
    Json object = Json::object();
    const Json whole = row_to_json(row);
    for (const auto& [column, value] : whole.items()) {
      if (!is_time_or_rank(column)) object[column] = value;
    }
    for (const auto& [column, values] : row.per_head) object["per_head " + column] = values;
    for (const auto& [column, values] : row.prefill.per_layer) {
      object["per_layer " + column] = values;
    }
    object["stop_steps"] = row.stop_steps;
    rows.push_back(std::move(object));
  }
  return rows;
}

std::size_t count_of(const std::string& text, const std::string& part) {
  std::size_t count = 0;
  for (std::size_t at = text.find(part); at != std::string::npos; at = text.find(part, at + 1)) {
    ++count;
  }
  return count;
}

class RanksTest : public AppTest {
 protected:
  void SetUp() override {
    AppTest::SetUp();
    if (std::system("command -v mpirun >/dev/null") != 0) GTEST_SKIP() << "no mpirun here";
    const Json list = Json::parse(run({"list", "devices", "--format", "json"}).out);
    for (const Json& item : list["devices"]) {
      if (item["name"] == "mpi" && item["usable"] == false) {
        GTEST_SKIP() << item["detail"].get<std::string>();
      }
    }
    // Open MPI's mpirun asks for these of root, and of a machine with fewer cores than ranks.
    for (const char* name : {"OMPI_ALLOW_RUN_AS_ROOT", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM",
                             "OMPI_MCA_rmaps_base_oversubscribe", "PRTE_ALLOW_RUN_AS_ROOT",
                             "PRTE_ALLOW_RUN_AS_ROOT_CONFIRM"}) {
      setenv(name, "1", 1);
    }
    // Cells of some ten milliseconds.
    Json slow = testing_support::small_config();
    slow["inputs"][0]["seqlen"] = {1500, 1600, 1700, 1800};
    slow["inputs"][0]["num_q_heads"] = 8;
    slow["methods"][2]["tau"] = {0.0, 0.01, 0.03, 0.1, 0.2, 0.3};
    write_config("slow.json", slow);
  }

  static RunSettings ranks(int count) {
    return {.launcher = {"mpirun", "-n", std::to_string(count)}};
  }
  Outcome run_ranks(int count, const Arguments& arguments) const {
    return run(arguments, ranks(count));
  }
  void expect_same_rows(const std::string& one, const std::string& many) const {
    for (const char* name : {"results.json", "results.h5"}) {
      EXPECT_EQ(comparable_rows(folder_ / one / name), comparable_rows(folder_ / many / name));
    }
  }

  // Starts the slow sweep and kills, once every rank computes, the process of rank 1 that `pick`
  // finds from that of its worker.
  Outcome run_and_kill(const std::string& out, const std::function<int(int worker)>& pick) const {
    RunningS2o sweep(folder_.path(), {"eval", "--config", "slow.json", "--out", out, "-v"},
                     ranks(2));
    const std::regex said("rank 1: rank 1 of 2: .*, process ([0-9]+)");
    std::string err;
    std::smatch match;
    while (sweep.is_running()) {
      err = sweep.err();
      if (std::regex_search(err, match, said) && count_of(err, "dense attention") >= 2) break;
      std::this_thread::sleep_for(std::chrono::milliseconds(2));
    }
    EXPECT_FALSE(match.empty()) << err;
    if (!match.empty()) kill(pick(std::stoi(match[1].str())), SIGKILL);
    return sweep.wait();
  }
};

int parent_of(int pid) {
  const std::string stat = read_file("/proc/" + std::to_string(pid) + "/stat");
  return std::stoi(stat.substr(stat.rfind(')') + 4));
}

TEST_F(RanksTest, two_ranks_leave_the_rows_of_one_process) {
  write_config("keep.json", [] {
    Json config = testing_support::small_config();
    config["save_outputs"] = true;
    return config;
  }());
  ASSERT_EQ(run({"eval", "--config", "keep.json", "--out", "one"}).exit_code, 0);
  const Outcome many = run_ranks(2, {"eval", "--config", "keep.json", "--out", "many"});
  ASSERT_EQ(many.exit_code, 0) << many.err;
  expect_same_rows("one", "many");
  EXPECT_EQ(count_of(many.out, "attention_ref)"), 2u) << many.out;  // one table an input
  const Json results = Json::parse(read_file(folder_ / "many/results.json"));
  EXPECT_EQ(results["context"]["ranks"].size(), 2u);
  for (const Json& row : results["rows"]) EXPECT_TRUE(row["rank"] == 0 || row["rank"] == 1);
  EXPECT_FALSE(exists("many/rows.partial.jsonl"));
}

TEST_F(RanksTest, two_ranks_leave_the_rows_of_one_process_in_a_prefill) {
  std::string ids;
  for (int i = 0; i < 64; ++i) ids += std::to_string(i * 37 % 64) + " ";
  write_file(folder_ / "words.txt", ids);
  Json config = Json::parse(R"({
    "device": "cpu", "prompts": [{"tokens": "words.txt", "seqlen": [40, 64]}],
    "methods": [{"name": "dense"}, {"name": "streaming_llm", "sink": 4, "window": [16, 24]}]})");
  config["model"] = (data_folder() / "fixtures/models/llama_tied").string();
  write_config("prefill.json", config);
  ASSERT_EQ(run({"prefill", "--config", "prefill.json", "--out", "one"}).exit_code, 0);
  const Outcome many = run_ranks(2, {"prefill", "--config", "prefill.json", "--out", "many"});
  ASSERT_EQ(many.exit_code, 0) << many.err;
  expect_same_rows("one", "many");
}

TEST_F(RanksTest, killed_worker_costs_its_row_and_resume_completes) {
  ASSERT_EQ(run({"eval", "--config", "slow.json", "--out", "one"}).exit_code, 0);
  const Outcome killed = run_and_kill("many", [](int worker) { return worker; });
  EXPECT_EQ(killed.exit_code, 1) << killed.err;
  EXPECT_THAT(killed.err, HasSubstr("rank 1 on"));
  EXPECT_THAT(killed.err, HasSubstr("signal 9"));
  EXPECT_GE(comparable_rows(folder_ / "many/results.json").size(), 35u);  // of 36
  const Outcome rest = run_ranks(3, {"eval", "--config", "slow.json", "--out", "many", "--resume"});
  ASSERT_EQ(rest.exit_code, 0) << rest.err;
  expect_same_rows("one", "many");
}

// The launcher then ends the other ranks.
TEST_F(RanksTest, rows_survive_a_killed_rank_and_one_process_can_go_on) {
  ASSERT_EQ(run({"eval", "--config", "slow.json", "--out", "one"}).exit_code, 0);
  const Outcome killed = run_and_kill("many", parent_of);
  EXPECT_NE(killed.exit_code, 0);
  const Outcome rest = run({"eval", "--config", "slow.json", "--out", "many", "--resume"});
  ASSERT_EQ(rest.exit_code, 0) << rest.err;
  expect_same_rows("one", "many");
}

TEST_F(RanksTest, ranks_of_different_configs_end_with_one_message) {
  const std::string binary = std::string(S2O_BINARY_DIR) + "/s2o";
  const Outcome outcome = run({"eval", "--config", "small.json", "--out", "many"},
                              {.launcher = {"mpirun", "-n", "1", binary, "eval", "--config",
                                            "slow.json", "--out", "many", ":", "-n", "1"}});
  EXPECT_EQ(outcome.exit_code, 2) << outcome.err;
  EXPECT_EQ(count_of(outcome.err, "differ in config: at name"), 1u) << outcome.err;
  EXPECT_FALSE(exists("many/results.json"));
}

TEST_F(RanksTest, what_all_ranks_find_wrong_is_said_once) {
  const Outcome config = run_ranks(2, {"eval", "--config", "absent.json"});
  EXPECT_EQ(config.exit_code, 2);
  EXPECT_EQ(count_of(config.err, "s2o: error"), 1u) << config.err;
  const Outcome usage = run_ranks(2, {"eval", "--confg", "small.json"});
  EXPECT_EQ(usage.exit_code, 2);
  EXPECT_EQ(count_of(usage.err, "--config is required"), 1u) << usage.err;
  const Outcome device =
      run_ranks(2, {"eval", "--config", "small.json", "--device", "cuda:1", "--set", "dtype=bf16"});
  EXPECT_NE(device.exit_code, 0);
  EXPECT_EQ(count_of(device.err, "s2o: error"), 1u) << device.err;
}

TEST_F(RanksTest, failing_cells_are_rows_and_exit_code_1) {
  Json config = testing_support::small_config();
  config["inputs"].push_back({{"source", "dump"}, {"path", "broken.safetensors"}});
  write_file(folder_ / "broken.safetensors", "no tensors");
  write_config("broken.json", config);
  const Outcome one = run({"eval", "--config", "broken.json", "--out", "one"});
  const Outcome many = run_ranks(2, {"eval", "--config", "broken.json", "--out", "many"});
  EXPECT_EQ(one.exit_code, many.exit_code) << many.err;
}

TEST_F(RanksTest, stop_leaves_rows_for_resume) {
  ASSERT_EQ(run({"eval", "--config", "small.json", "--out", "one"}).exit_code, 0);
  const Outcome stopped =
      run_ranks(2, {"eval", "--config", "small.json", "--out", "many", "--stop-after-rows", "4"});
  EXPECT_EQ(stopped.exit_code, 130) << stopped.err;
  ASSERT_EQ(run_ranks(2, {"eval", "--config", "small.json", "--out", "many", "--resume"}).exit_code,
            0);
  expect_same_rows("one", "many");
}

}  // namespace
}  // namespace s2o
