// What happens to a run whose device fails: no memory, a kernel that faults, a device that goes
// away. Rows so far are kept, the others say why or are computed by a fresh process, and --resume
// completes what is missing. On the CPU the faults are simulated; on a GPU they are real.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <sstream>

#include "app/tests/run_s2o.h"
#include "lib/eval/backend_cuda.h"

namespace s2o {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Not;
using testing_support::AppTest;
using testing_support::data_folder;
using testing_support::Outcome;
using testing_support::read_file;
using testing_support::write_file;
using Json = nlohmann::ordered_json;
using Arguments = std::vector<std::string>;

// Of "eval" or "prefill", on "cpu" or "cuda".
class DeviceFaultsTest : public AppTest, public ::testing::WithParamInterface<std::string> {
 protected:
  void SetUp() override {
    const std::string refusal = is_cuda() ? cuda_refusal() : "";
    if (!refusal.empty()) GTEST_SKIP() << refusal;
    // The second input needs more memory than the first: what that leaves is not enough.
    Json eval = Json::parse(R"({
      "dtype": "bf16", "timing": {"warmup": 1, "repeats": 1},
      "inputs": [{"source": "synthetic", "seqlen": 256}, {"source": "synthetic", "seqlen": 512},
                 {"source": "synthetic", "seqlen": 384}],
      "methods": [{"name": "dense"}, {"name": "streaming_llm", "window": 128},
                  {"name": "s2o", "tau": [0.0, 0.1]}]})");
    for (Json& input : eval["inputs"]) {
      input.update({{"num_q_heads", 4}, {"num_kv_heads", 2}, {"head_dim", 64}});
    }
    if (is_cuda()) eval["inputs"][1]["seqlen"] = 32768;
    eval["device"] = GetParam();
    write_config("eval.json", eval);
    std::string ids;
    for (int i = 0; i < 400; ++i) ids += std::to_string((i * 37 + i * i) % 4096) + " ";
    write_file(folder_ / "words.txt", ids);
    Json prefill = Json::parse(R"({
      "prompts": [{"tokens": "words.txt", "seqlen": [200, 300]}],
      "methods": [{"name": "dense"}, {"name": "s2o", "tau": [0.0, 0.3]}]})");
    prefill["model"] = (data_folder() / "tiny-llama").string();
    prefill["device"] = GetParam();
    write_config("prefill.json", prefill);
  }
  bool is_cuda() const { return GetParam() == "cuda"; }

  Outcome start(const std::string& command, const std::string& faults,
                const Arguments& more = {}) const {
    Arguments arguments = {command, "-c", command + ".json", "--out", command};
    arguments.insert(arguments.end(), more.begin(), more.end());
    return run(arguments, {.faults = faults});
  }
  std::vector<std::string> errors(const std::string& command) const {
    const Json document = Json::parse(read_file(folder_ / command / "results.json"));
    std::vector<std::string> errors;
    for (const Json& row : document["rows"]) {
      errors.push_back(row["error"].is_null() ? "" : row["error"].get<std::string>());
    }
    return errors;
  }
  // Which rows failed; those that did say `what`.
  void expect_failed(const std::string& command, const std::string& pattern,
                     const std::string& what) const {
    std::string found;
    for (const std::string& error : errors(command)) {
      found += error.empty() ? '.' : 'x';
      if (error.empty()) continue;
      EXPECT_THAT(error, HasSubstr(what));
    }
    EXPECT_EQ(found, pattern);
  }
  // The rest is computed, as if nothing had happened.
  void expect_resumed(const std::string& command) const {
    const Outcome resumed = start(command, "", {"--resume", "-v"});
    EXPECT_EQ(resumed.exit_code, 0) << resumed.err;
    EXPECT_FALSE(exists(command + "/rows.partial.jsonl"));
    EXPECT_THAT(errors(command), ::testing::Each(IsEmpty()));
    ASSERT_EQ(run({command, "-c", command + ".json", "--out", "whole"}).exit_code, 0);
    const Json expected = Json::parse(read_file(folder_ / "whole/results.json"));
    const Json actual = Json::parse(read_file(folder_ / command / "results.json"));
    ASSERT_EQ(actual["rows"].size(), expected["rows"].size());
    for (std::size_t i = 0; i < expected["rows"].size(); ++i) {
      for (const char* column : {"input", "seqlen", "method", "params", "compute_density", "mse",
                                 "held_out_loss", "kl_from_dense"}) {
        EXPECT_EQ(actual["rows"][i].value(column, Json()),
                  expected["rows"][i].value(column, Json()))
            << i << column;
      }
    }
    for (const char* field : {"device", "config_hash"}) {
      EXPECT_EQ(actual["context"].value(field, Json()), expected["context"].value(field, Json()));
    }
  }
};
INSTANTIATE_TEST_SUITE_P(devices, DeviceFaultsTest, ::testing::Values("cpu", "cuda"),
                         [](const auto& test) { return test.param; });

// Calls: the input, then each setting.
TEST_P(DeviceFaultsTest, input_that_finds_no_memory_fails_alone) {
  const Outcome outcome = start("eval", "memory@6");
  EXPECT_EQ(outcome.exit_code, 1) << outcome.err;
  EXPECT_THAT(outcome.err, Not(HasSubstr("fresh process")));
  expect_failed("eval", "....xxxx....", "bytes of device memory");
  expect_resumed("eval");
}

TEST_P(DeviceFaultsTest, kernel_that_faults_costs_its_row) {
  // The third call of the run, then the second of the fresh process, which is the next row.
  const Outcome outcome = start("eval", "kernel@3,kernel@2");
  EXPECT_EQ(outcome.exit_code, 1) << outcome.err;
  EXPECT_THAT(outcome.err, HasSubstr("is lost to this process"));
  EXPECT_THAT(outcome.err, HasSubstr("a fresh process goes on"));
  expect_failed("eval", ".xx.........", is_cuda() ? "cudaError" : "a kernel faulted");
  expect_resumed("eval");
}

TEST_P(DeviceFaultsTest, kernel_that_faults_before_the_reference_costs_one_row) {
  const Outcome outcome = start("eval", "kernel@6");
  EXPECT_EQ(outcome.exit_code, 1) << outcome.err;
  expect_failed("eval", "....x.......", "");
  expect_resumed("eval");
}

TEST_P(DeviceFaultsTest, rows_after_the_device_is_gone_say_so) {
  const Outcome outcome = start("eval", "device@8");
  EXPECT_EQ(outcome.exit_code, 1) << outcome.err;
  expect_failed("eval", ".....xxxxxxx", "");
  const std::vector<std::string> rows = errors("eval");
  EXPECT_THAT(rows[5], Not(HasSubstr("fresh process")));
  for (std::size_t i = 6; i < rows.size(); ++i) {
    EXPECT_THAT(rows[i], AllOf(HasSubstr("is lost to this process"),
                               HasSubstr("a fresh process finds: device "), HasSubstr("--resume")));
  }
  expect_resumed("eval");
}

TEST_P(DeviceFaultsTest, device_that_is_gone_at_once_is_5) {
  EXPECT_EQ(start("eval", "device@1").exit_code, 5);
  expect_failed("eval", "xxxxxxxxxxxx", "");
  expect_resumed("eval");
}

TEST_P(DeviceFaultsTest, failures_of_an_earlier_run_are_tried_again_after_a_fault) {
  EXPECT_EQ(start("eval", "device@8").exit_code, 1);
  // Now the first missing row fails: the others are computed by the fresh process.
  const Outcome outcome = start("eval", "kernel@2", {"--resume"});
  EXPECT_EQ(outcome.exit_code, 1) << outcome.err;
  expect_failed("eval", ".....x......", "");
  expect_resumed("eval");
}

// Calls: the preparation, then each prefill; dense is the first of a prompt.
TEST_P(DeviceFaultsTest, prefill_that_finds_no_memory_fails_alone) {
  const Outcome outcome = start("prefill", "memory@1,memory@2");
  EXPECT_EQ(outcome.exit_code, 1) << outcome.err;
  expect_failed("prefill", "xxx...", "bytes of device memory");
  expect_resumed("prefill");
}

TEST_P(DeviceFaultsTest, prefill_whose_kernel_faults_costs_its_row) {
  const Outcome outcome = start("prefill", "kernel@3");
  EXPECT_EQ(outcome.exit_code, 1) << outcome.err;
  EXPECT_THAT(outcome.err, HasSubstr("a fresh process goes on"));
  expect_failed("prefill", ".x....", is_cuda() ? "cudaError" : "a kernel faulted");
  expect_resumed("prefill");
}

TEST_P(DeviceFaultsTest, prefill_whose_kernel_faults_amid_its_work_costs_its_row) {
  const Outcome outcome = start("prefill", "amid@3");
  EXPECT_EQ(outcome.exit_code, 1) << outcome.err;
  EXPECT_THAT(outcome.err, HasSubstr("a fresh process goes on"));
  expect_failed("prefill", ".x....", is_cuda() ? "cudaError" : "a kernel faulted");
  expect_resumed("prefill");
}

TEST_P(DeviceFaultsTest, prefills_after_the_device_is_gone_say_so) {
  const Outcome outcome = start("prefill", "device@4");
  EXPECT_EQ(outcome.exit_code, 1) << outcome.err;
  expect_failed("prefill", "..xxxx", "");
  EXPECT_THAT(errors("prefill")[3], HasSubstr("a fresh process finds: device "));
  expect_resumed("prefill");
}

TEST_P(DeviceFaultsTest, note_for_a_fresh_process_is_for_s2o_itself) {
  const Outcome outcome =
      run({"eval", "-c", "eval.json", "--out", "out", "--after-fault", "{\"device\": 1}"});
  EXPECT_EQ(outcome.exit_code, 2);
  EXPECT_THAT(outcome.err, HasSubstr("--after-fault: is for s2o itself"));
  EXPECT_FALSE(exists("out"));
}

// One prompt over two GPUs, of which the second fails: the first must not wait for it.
class TwoGpuFaultsTest : public DeviceFaultsTest {
 protected:
  void SetUp() override {
    DeviceFaultsTest::SetUp();
    if (IsSkipped()) return;
    int count = 0;
    const Json list = Json::parse(run({"list", "devices", "--format", "json"}).out);
    for (const Json& item : list["devices"]) {
      count += item["name"].get<std::string>().starts_with("cuda:") ? 1 : 0;
    }
    if (count < 2) GTEST_SKIP() << count << " CUDA device(s) here, two are needed";
    Json prefill = Json::parse(read_file(folder_ / "prefill.json"));
    prefill["parallel"] = 2;
    write_config("prefill.json", prefill);
  }
  // All rows but the second, said in one line. Which GPU it was is not known: a fault also ends
  // what the other one waits for, with the same words.
  void expect_second_lost(const Outcome& outcome) const {
    EXPECT_EQ(outcome.exit_code, 1) << outcome.err;
    expect_failed("prefill", ".x....", "cudaError");
    std::istringstream lines(outcome.err);
    int errors = 0;
    for (std::string line; std::getline(lines, line);) {
      if (line.starts_with("s2o: error:") && line.find("cudaError") != std::string::npos) ++errors;
    }
    EXPECT_EQ(errors, 1) << outcome.err;
    expect_resumed("prefill");
  }
};
INSTANTIATE_TEST_SUITE_P(devices, TwoGpuFaultsTest, ::testing::Values("cuda"),
                         [](const auto& test) { return test.param; });

TEST_P(TwoGpuFaultsTest, kernel_that_faults_costs_the_row) {
  expect_second_lost(start("prefill", "kernel@3"));
}

TEST_P(TwoGpuFaultsTest, kernel_that_faults_amid_the_work_costs_the_row) {
  expect_second_lost(start("prefill", "amid@3"));
}

TEST_P(TwoGpuFaultsTest, no_memory_costs_the_prompt) {
  const Outcome outcome = start("prefill", "memory@1,memory@2");
  EXPECT_EQ(outcome.exit_code, 1) << outcome.err;
  EXPECT_THAT(outcome.err, Not(HasSubstr("fresh process")));
  expect_failed("prefill", "xxx...", "bytes of device memory");
  EXPECT_THAT(errors("prefill")[0], HasSubstr("cuda:1: "));
  expect_resumed("prefill");
}

}  // namespace
}  // namespace s2o
