// Runs that are killed at any point: what they leave is whole, and the next run ends with the rows
// of one that nobody disturbed.
//
// Two kinds of points: random times, and the system calls that make files durable or move them
// (rename, unlink, fsync, ftruncate), each before it happens. The process stops at those through a
// seccomp filter that hands them to the test (ptrace); the binary itself knows nothing of it.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stddef.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>

#include <algorithm>
#include <chrono>
#include <optional>
#include <thread>

#include "app/tests/run_s2o.h"
#include "lib/core/random.h"
#include "lib/report/results_file.h"
#include "lib/report/results_json.h"

namespace s2o {
namespace {

using Clock = std::chrono::steady_clock;
using Json = nlohmann::ordered_json;
using Arguments = std::vector<std::string>;
using testing_support::AppTest;
using testing_support::data_folder;
using testing_support::Outcome;
using testing_support::read_file;
using testing_support::RunningS2o;
using testing_support::write_file;

constexpr int kRandomPoints = 30;
constexpr int kMaxCalls = 400;  // a run has far fewer

// Runs the binary until the given traced call (from 0) begins and kills it there. False when the
// run ended before; nothing when the machine does not let processes be traced.
std::optional<bool> kill_at_call(const std::filesystem::path& folder, const Arguments& arguments,
                                 int call) {
  std::string binary = std::string(S2O_BINARY_DIR) + "/s2o";
  Arguments words = arguments;
  std::vector<char*> argv = {binary.data()};
  for (std::string& word : words) argv.push_back(word.data());
  argv.push_back(nullptr);
  const pid_t child = fork();
  if (child == 0) {
    constexpr std::uint32_t kTrace = SECCOMP_RET_TRACE;
    const auto load = static_cast<std::uint32_t>(offsetof(seccomp_data, nr));
    std::vector<sock_filter> filter = {BPF_STMT(BPF_LD | BPF_W | BPF_ABS, load)};
    for (const long number : {SYS_rename, SYS_renameat, SYS_renameat2, SYS_unlink, SYS_unlinkat,
                              SYS_fsync, SYS_ftruncate}) {
      filter.push_back(
          BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, static_cast<std::uint32_t>(number), 0, 1));
      filter.push_back(BPF_STMT(BPF_RET | BPF_K, kTrace));
    }
    filter.push_back(BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW));
    const sock_fprog program = {.len = static_cast<unsigned short>(filter.size()),
                                .filter = filter.data()};
    const int null = open("/dev/null", O_RDWR);
    const bool ready = ptrace(PTRACE_TRACEME, 0, nullptr, nullptr) == 0 && raise(SIGSTOP) == 0 &&
                       prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0 &&
                       prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) == 0 &&
                       chdir(folder.c_str()) == 0 && dup2(null, STDOUT_FILENO) >= 0 &&
                       dup2(null, STDERR_FILENO) >= 0;
    if (ready) execv(argv[0], argv.data());
    _exit(127);
  }
  int status = 0;
  if (child < 0 || waitpid(child, &status, 0) != child || !WIFSTOPPED(status)) return std::nullopt;
  const long options = PTRACE_O_TRACESECCOMP | PTRACE_O_EXITKILL | PTRACE_O_TRACECLONE;
  if (ptrace(PTRACE_SETOPTIONS, child, nullptr, options) != 0) {
    kill(child, SIGKILL);
    waitpid(child, &status, 0);
    return std::nullopt;
  }
  ptrace(PTRACE_CONT, child, nullptr, nullptr);
  int seen = 0;
  bool killed = false;
  while (true) {
    const pid_t thread = waitpid(-1, &status, __WALL);
    if (thread < 0) break;
    if (WIFEXITED(status) || WIFSIGNALED(status)) {
      if (thread == child) break;
      continue;
    }
    const bool is_call = status >> 8 == (SIGTRAP | (PTRACE_EVENT_SECCOMP << 8));
    if (is_call && seen++ == call) {
      killed = true;
      kill(child, SIGKILL);
      continue;
    }
    const int signal = WSTOPSIG(status);
    // Stops of tracing are no signals of the process.
    const bool is_ours = signal == SIGTRAP || signal == SIGSTOP;
    ptrace(PTRACE_CONT, thread, nullptr, is_ours ? 0L : static_cast<long>(signal));
  }
  if (!killed && WIFEXITED(status) && WEXITSTATUS(status) == 127) return std::nullopt;
  return killed;
}

bool is_time(const std::string& column) {
  return column.ends_with("_ms") || column == "speedup_vs_dense" || column == "effective_tflops";
}

// The rows without what no two runs share.
std::vector<Json> comparable_rows(const std::filesystem::path& file) {
  std::vector<Json> rows;
  for (const auto results = read_results(file); const ResultRow& row : results.rows) {
    Json object = row_to_json(row);
    for (auto& [column, value] : object.items()) {
      if (is_time(column)) value = nullptr;
    }
    if (file.extension() == ".h5") {
      for (const auto& [column, values] : row.per_head) object["per_head " + column] = values;
      object["stop_steps"] = row.stop_steps;
    }
    rows.push_back(std::move(object));
  }
  return rows;
}

class CrashMatrix : public AppTest {
 protected:
  void SetUp() override {
    std::string ids;
    for (int i = 0; i < 64; ++i) ids += std::to_string(i * 37 % 64) + " ";
    write_file(folder_ / "words.txt", ids);
    const std::string model = (data_folder() / "fixtures/models/llama_tied").string();
    write_config("eval.json", Json::parse(R"({
      "device": "cpu", "dtype": "fp32", "save_outputs": true,
      "inputs": [{"source": "synthetic", "pattern": "mixed", "seqlen": [129, 257],
                  "num_q_heads": 2, "num_kv_heads": 1, "head_dim": 32}],
      "methods": [{"name": "dense"}, {"name": "s2o", "segment_size": 128, "tau": 0.1}]})"));
    Json prefill = Json::parse(R"({
      "device": "cpu", "prompts": [{"tokens": "words.txt", "seqlen": [40, 64]}],
      "methods": [{"name": "dense"}, {"name": "streaming_llm", "sink": 4, "window": 16}]})");
    prefill["model"] = model;
    write_config("prefill.json", prefill);
    capture_ = {"capture",  "--model", model,      "--tokens", "words.txt",
                "--seqlen", "64",      "--layers", "0",        "--out"};
  }

  // An earlier run with another config is there: it must survive.
  void make_earlier(const std::string& out) const {
    std::filesystem::create_directory(folder_ / out);
    for (const char* name : {"results.json", "results.h5"}) {
      std::filesystem::copy_file(folder_ / "other" / name, folder_ / out / name);
    }
  }

  void sweep(const std::string& command) const {
    const Arguments base = {command, "-c", command + ".json", "-q", "--out"};
    const auto with = [&base](const std::string& out, const Arguments& more = {}) {
      Arguments arguments = base;
      arguments.push_back(out);
      arguments.insert(arguments.end(), more.begin(), more.end());
      return arguments;
    };
    ASSERT_EQ(run(with("other", {"--set", "seed=1"})).exit_code, 0);
    const std::vector<Json> other = comparable_rows(folder_ / "other/results.json");
    make_earlier("whole");
    const auto begin = Clock::now();
    ASSERT_EQ(run(with("whole")).exit_code, 0);
    const auto duration = Clock::now() - begin;
    const std::vector<Json> rows = comparable_rows(folder_ / "whole/results.json");
    const std::vector<Json> rows_hdf5 = comparable_rows(folder_ / "whole/results.h5");
    ASSERT_FALSE(rows.empty());

    const auto check = [&](const std::string& out, const std::string& what) {
      SCOPED_TRACE(what);
      const Outcome resumed = run(with(out, {"--resume"}));
      // Killed before it began, the run left the results of the other config alone.
      const bool not_begun =
          resumed.exit_code == 2 && resumed.err.find("belongs to config") != std::string::npos;
      if (not_begun) {
        ASSERT_EQ(run(with(out)).exit_code, 0);
      }
      ASSERT_TRUE(not_begun || resumed.exit_code == 0) << resumed.err;
      EXPECT_EQ(comparable_rows(folder_ / out / "results.json"), rows);
      EXPECT_EQ(comparable_rows(folder_ / out / "results.h5"), rows_hdf5);
      EXPECT_EQ(comparable_rows(folder_ / out / "results.previous.json"), other);
      EXPECT_EQ(comparable_rows(folder_ / out / "results.previous.h5").size(), other.size());
      // Nothing else is left.
      EXPECT_EQ(num_files(out), 4u);
    };
    for (int point = 0; point < kRandomPoints; ++point) {
      const std::string out = "random" + std::to_string(point);
      make_earlier(out);
      RunningS2o process(folder_.path(), with(out));
      const double part = CounterRandom(/*seed=*/1, /*stream=*/0).uniform(point);
      std::this_thread::sleep_for(duration * part);
      process.send(SIGKILL);
      process.wait();
      check(out, "killed after " + std::to_string(part) + " of its time");
    }
    int calls = 0;
    for (; calls < kMaxCalls; ++calls) {
      const std::string out = "call" + std::to_string(calls);
      make_earlier(out);
      const std::optional<bool> killed = kill_at_call(folder_.path(), with(out), calls);
      if (!killed) GTEST_SKIP() << "processes cannot be traced here";
      check(out, "killed at call " + std::to_string(calls));
      if (!*killed) break;
    }
    EXPECT_GT(calls, 10);
    EXPECT_LT(calls, kMaxCalls);
  }

  std::size_t num_files(const std::string& folder) const {
    std::size_t count = 0;
    for ([[maybe_unused]] const auto& entry :
         std::filesystem::directory_iterator(folder_ / folder)) {
      ++count;
    }
    return count;
  }

  Arguments capture_;
};

TEST_F(CrashMatrix, eval) { sweep("eval"); }

TEST_F(CrashMatrix, prefill) { sweep("prefill"); }

TEST_F(CrashMatrix, capture) {
  const auto with = [this](const std::string& out) {
    Arguments arguments = capture_;
    arguments.push_back(out);
    return arguments;
  };
  for (const std::string extension : {".safetensors", ".h5"}) {
    const auto begin = Clock::now();
    ASSERT_EQ(run(with("whole" + extension)).exit_code, 0);
    const auto duration = Clock::now() - begin;
    const std::string whole = read_file(folder_ / ("whole" + extension));
    std::filesystem::create_directory(folder_ / ("out" + extension));
    const std::string out = "out" + extension + "/capture" + extension;
    const auto check = [&](const std::string& what) {
      SCOPED_TRACE(what);
      // Whole, or not there.
      EXPECT_TRUE(!exists(out) || read_file(folder_ / out) == whole);
      ASSERT_EQ(run(with(out)).exit_code, 0);
      EXPECT_TRUE(read_file(folder_ / out) == whole);
      EXPECT_EQ(num_files("out" + extension), 1u);
      std::filesystem::remove(folder_ / out);
    };
    for (int point = 0; point < kRandomPoints / 2; ++point) {
      RunningS2o process(folder_.path(), with(out));
      const double part = CounterRandom(/*seed=*/2, /*stream=*/0).uniform(point);
      std::this_thread::sleep_for(duration * part);
      process.send(SIGKILL);
      process.wait();
      check("killed after " + std::to_string(part) + " of its time");
    }
    for (int call = 0; call < kMaxCalls; ++call) {
      const std::optional<bool> killed = kill_at_call(folder_.path(), with(out), call);
      if (!killed) GTEST_SKIP() << "processes cannot be traced here";
      check("killed at call " + std::to_string(call));
      if (!*killed) break;
    }
  }
}

}  // namespace
}  // namespace s2o
