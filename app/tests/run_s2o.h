// Runs the binary as a user would. Header-only, tests only.
#pragma once

#include <fcntl.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <filesystem>
#include <nlohmann/json.hpp>
#include <stdexcept>
#include <string>
#include <vector>

#include "lib/testing/files.h"

namespace s2o::testing_support {

struct Outcome {
  int exit_code = -1;  // 128 + signal for a process that a signal ended
  std::string out;
  std::string err;
};

struct RunSettings {
  std::string stdout_file;            // instead of capturing it
  long max_file_bytes = -1;           // as if the disk were full beyond; -1 = no limit
  std::vector<std::string> launcher;  // "mpirun", "-n", "2"
  // Runs s2o_faults with these faults of the device (app/tests/faults/faults.h).
  std::string faults;
};

// A process with its own working folder `folder`; stdout and stderr go to files in it.
class RunningS2o {
 public:
  RunningS2o(const std::filesystem::path& folder, const std::vector<std::string>& arguments,
             const RunSettings& settings = {})
      : out_(settings.stdout_file.empty() ? (folder / ".stdout").string() : settings.stdout_file),
        err_(folder / ".stderr") {
    std::vector<std::string> words = settings.launcher;
    words.push_back(std::string(S2O_BINARY_DIR) +
                    (settings.faults.empty() ? "/s2o" : "/s2o_faults"));
    words.insert(words.end(), arguments.begin(), arguments.end());
    std::vector<char*> argv;
    for (std::string& word : words) argv.push_back(word.data());
    argv.push_back(nullptr);
    pid_ = fork();
    if (pid_ < 0) throw std::runtime_error("fork failed");
    if (pid_ > 0) return;
    const int out = open(out_.c_str(), O_WRONLY | O_CREAT | O_TRUNC, 0644);
    const int err = open(err_.c_str(), O_WRONLY | O_CREAT | O_TRUNC, 0644);
    const bool ready = chdir(folder.c_str()) == 0 && dup2(out, STDOUT_FILENO) >= 0 &&
                       dup2(err, STDERR_FILENO) >= 0;
    if (settings.max_file_bytes >= 0) {
      const auto bytes = static_cast<rlim_t>(settings.max_file_bytes);
      const rlimit limit = {.rlim_cur = bytes, .rlim_max = bytes};
      setrlimit(RLIMIT_FSIZE, &limit);
      signal(SIGXFSZ, SIG_IGN);
    }
    if (!settings.faults.empty()) setenv("S2O_TEST_FAULTS", settings.faults.c_str(), 1);
    if (ready) execvp(argv[0], argv.data());
    _exit(127);
  }
  RunningS2o(const RunningS2o&) = delete;
  RunningS2o& operator=(const RunningS2o&) = delete;
  ~RunningS2o() {
    if (pid_ <= 0) return;
    kill(pid_, SIGKILL);
    waitpid(pid_, nullptr, 0);
  }

  // Nothing, once it has ended: -1 would be every process of the machine.
  void send(int signal_number) const {
    if (pid_ > 0) kill(pid_, signal_number);
  }
  // What it has said so far.
  std::string err() const { return read_file(err_); }

  // Whether the process is still there.
  bool is_running() {
    int status = 0;
    if (pid_ > 0 && waitpid(pid_, &status, WNOHANG) == pid_) finish(status);
    return pid_ > 0;
  }

  Outcome wait() {
    int status = 0;
    if (pid_ > 0) {
      if (waitpid(pid_, &status, 0) != pid_) throw std::runtime_error("waitpid failed");
      finish(status);
    }
    return {exit_code_, read_file(out_), read_file(err_)};
  }

 private:
  void finish(int status) {
    exit_code_ = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
    pid_ = -1;
  }

  std::filesystem::path out_;
  std::filesystem::path err_;
  pid_t pid_ = -1;
  int exit_code_ = -1;
};

inline Outcome run_s2o(const std::filesystem::path& folder,
                       const std::vector<std::string>& arguments,
                       const RunSettings& settings = {}) {
  return RunningS2o(folder, arguments, settings).wait();
}

// A config that runs in a moment: 2 inputs x 5 settings.
inline nlohmann::ordered_json small_config() {
  return nlohmann::ordered_json::parse(R"({
    "device": "cpu",
    "dtype": "fp32",
    "inputs": [{"source": "synthetic", "pattern": "mixed", "seqlen": [257, 512],
                "num_q_heads": 4, "num_kv_heads": 2, "head_dim": 32}],
    "methods": [{"name": "dense"},
                {"name": "streaming_llm", "sink": 16, "window": [64, 128]},
                {"name": "s2o", "segment_size": 128, "tau": [0.0, 0.1]}]})");
}

// A folder with small.json.
class AppTest : public ::testing::Test {
 protected:
  void SetUp() override { write_config("small.json", small_config()); }
  void write_config(const std::string& name, const nlohmann::ordered_json& config) const {
    write_file(folder_ / name, config.dump(1));
  }
  Outcome run(const std::vector<std::string>& arguments, const RunSettings& settings = {}) const {
    return run_s2o(folder_.path(), arguments, settings);
  }
  bool exists(const std::string& name) const { return std::filesystem::exists(folder_ / name); }

  TempFolder folder_;
};

}  // namespace s2o::testing_support
