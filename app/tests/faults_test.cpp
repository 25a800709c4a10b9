// What happens to a run from outside: streams that are closed, files that shrink, folders that
// move, devices in the place of files, names that are no text.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <thread>

#include "app/tests/run_s2o.h"

namespace s2o {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::Not;
using testing_support::AppTest;
using testing_support::data_folder;
using testing_support::Outcome;
using testing_support::read_file;
using testing_support::RunningS2o;
using testing_support::small_config;
using testing_support::write_file;
using Json = nlohmann::ordered_json;
using Arguments = std::vector<std::string>;

class FaultsTest : public AppTest {
 protected:
  // Through a shell, for its redirections. The exit code.
  int shell(const std::string& command) const {
    const std::string line = "cd '" + folder_.path().string() + "' && '" +
                             std::string(S2O_BINARY_DIR) + "/s2o' " + command;
    const int status = std::system(line.c_str());
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
  }
  void expect(const Arguments& arguments, int exit_code, const std::string& message) const {
    const Outcome outcome = run(arguments);
    EXPECT_EQ(outcome.exit_code, exit_code) << ::testing::PrintToString(arguments) << outcome.err;
    EXPECT_THAT(outcome.err, HasSubstr(message)) << ::testing::PrintToString(arguments);
  }
  // Waits until the run has written that many lines to its journal.
  void wait_for_lines(const std::string& journal, std::size_t lines) const {
    for (int i = 0; i < 2000; ++i) {
      if (exists(journal)) {
        const std::string text = read_file(folder_ / journal);
        if (static_cast<std::size_t>(std::count(text.begin(), text.end(), '\n')) >= lines) return;
      }
      std::this_thread::sleep_for(std::chrono::milliseconds(5));
    }
    FAIL() << journal << " does not grow";
  }
  // A run that takes a while.
  void write_long_config() const {
    Json config = small_config();
    config["inputs"][0]["seqlen"] = 2048;
    config["methods"] = Json::array({{{"name", "s2o"}, {"segment_size", 128}, {"tau", Json()}}});
    for (int i = 0; i < 200; ++i) config["methods"][0]["tau"].push_back(0.001 * i);
    write_config("long.json", config);
  }
};

TEST_F(FaultsTest, closed_streams_do_not_get_into_the_files) {
  EXPECT_EQ(shell("eval -c small.json --out out -vv <&- >table 2>&-"), 0);
  EXPECT_EQ(Json::parse(read_file(folder_ / "out/results.json"))["rows"].size(), 10u);
  EXPECT_EQ(shell("eval -c small.json --out stopped --stop-after-rows 3 -vv <&- >table 2>&-"), 130);
  EXPECT_THAT(read_file(folder_ / "stopped/rows.partial.jsonl"), Not(HasSubstr("s2o: ")));
}

TEST_F(FaultsTest, a_result_that_goes_nowhere_is_4) {
  for (const char* command : {"list methods", "--version", "--help", "eval --help"}) {
    EXPECT_EQ(shell(std::string(command) + " >&- 2>err"), 4) << command;
    EXPECT_THAT(read_file(folder_ / "err"), HasSubstr("cannot write the result to stdout"));
    EXPECT_EQ(shell(std::string(command) + " >/dev/full 2>err"), 4) << command;
  }
  EXPECT_EQ(shell("eval -c small.json --out out >&- 2>err"), 4);
  EXPECT_EQ(Json::parse(read_file(folder_ / "out/results.json"))["rows"].size(), 10u);
}

TEST_F(FaultsTest, a_limit_on_file_sizes_is_a_full_disk) {
  EXPECT_EQ(shell("synth --seqlen 4096 --out x.safetensors 2>err; code=$?; exit $code"), 0);
  std::filesystem::remove(folder_ / "x.safetensors");
  const std::string line = "ulimit -f 64; '" + std::string(S2O_BINARY_DIR) +
                           "/s2o' synth --seqlen 4096 --out x.safetensors 2>err";
  const int status = std::system(("cd '" + folder_.path().string() + "'; " + line).c_str());
  EXPECT_EQ(WEXITSTATUS(status), 4);
  EXPECT_FALSE(exists("x.safetensors"));
  for (const auto& entry : std::filesystem::directory_iterator(folder_.path())) {
    EXPECT_THAT(entry.path().filename().string(), Not(HasSubstr(".tmp-")));
  }
}

TEST_F(FaultsTest, a_file_that_shrinks_while_it_is_read_is_3_with_its_name) {
  ASSERT_EQ(run({"synth", "--seqlen", "4096", "--num-q-heads", "8", "--dtype", "fp32", "--out",
                 "x.safetensors"})
                .exit_code,
            0);
  // The first input keeps the run busy, the second is read when its turn comes.
  Json config = small_config();
  config["inputs"][0]["seqlen"] = 1024;
  config["inputs"].push_back({{"source", "dump"}, {"path", "x.safetensors"}});
  write_config("cut.json", config);
  RunningS2o process(folder_.path(), {"eval", "-c", "cut.json", "--out", "out"});
  wait_for_lines("out/rows.partial.jsonl", 1);
  std::filesystem::resize_file(folder_ / "x.safetensors", 4096);
  const Outcome outcome = process.wait();
  EXPECT_EQ(outcome.exit_code, 3) << outcome.err;
  EXPECT_THAT(outcome.err, HasSubstr("x.safetensors"));
}

TEST_F(FaultsTest, an_output_folder_that_moves_or_goes_is_noticed) {
  write_long_config();
  for (const bool removed : {false, true}) {
    RunningS2o process(folder_.path(), {"eval", "-c", "long.json", "--out", "out"});
    wait_for_lines("out/rows.partial.jsonl", 2);
    if (removed) {
      std::filesystem::remove_all(folder_ / "out");
    } else {
      std::filesystem::rename(folder_ / "out", folder_ / "moved");
    }
    const Outcome outcome = process.wait();
    EXPECT_EQ(outcome.exit_code, 4);
    EXPECT_THAT(outcome.err, HasSubstr(removed ? "was removed" : "moved/rows.partial.jsonl"));
    EXPECT_THAT(outcome.err, Not(HasSubstr("rows are in out")));
    EXPECT_FALSE(exists("out"));
  }
}

TEST_F(FaultsTest, what_is_no_file_is_refused_at_once) {
  ASSERT_EQ(mkfifo((folder_ / "pipe.safetensors").c_str(), 0600), 0);
  for (const char* name : {"pipe.h5", "pipe.json", "pipe.jsonl"}) {
    ASSERT_EQ(mkfifo((folder_ / name).c_str(), 0600), 0);
  }
  std::filesystem::create_symlink("loop", folder_ / "loop");
  const std::string no_file = "is a device or pipe, expected a file";
  expect({"inspect", "pipe.safetensors"}, 3, no_file);
  expect({"inspect", "pipe.h5"}, 3, no_file);
  expect({"inspect", "pipe.json"}, 3, no_file);
  expect({"match", "pipe.json"}, 3, no_file);
  expect({"match", "pipe.h5"}, 3, no_file);
  expect({"table", "pipe.json", "--table", "matched_sparsity"}, 3, no_file);
  expect({"eval", "-c", "pipe.json"}, 2, no_file);
  Json config = Json::parse(R"({"prompts": [{"prompts": "pipe.jsonl"}],
                                "methods": [{"name": "dense"}]})");
  config["model"] = (data_folder() / "fixtures/models/llama_tied").string();
  write_config("prompts.json", config);
  expect({"prefill", "-c", "prompts.json", "--device", "cpu"}, 3, no_file);
  for (const std::string& model :
       std::vector<std::string>{"loop", "loop/below", std::string(5000, 'x')}) {
    config["model"] = model;
    config["prompts"] = Json::array({{{"random", true}, {"seqlen", 8}}});
    write_config("prompts.json", config);
    expect({"prefill", "-c", "prompts.json", "--device", "cpu"}, 3, "config.json");
  }
  for (const char* out : {"pipe.safetensors", "pipe.h5"}) {
    expect({"synth", "--seqlen", "8", "--out", out}, 2, "cannot be written: is a device or pipe");
    EXPECT_TRUE(std::filesystem::is_fifo(folder_ / out));
  }
  ASSERT_EQ(run({"eval", "-c", "small.json", "--out", "out", "--stop-after-rows", "2"}).exit_code,
            130);
  std::filesystem::remove(folder_ / "out/rows.partial.jsonl");
  ASSERT_EQ(mkfifo((folder_ / "out/rows.partial.jsonl").c_str(), 0600), 0);
  expect({"eval", "-c", "small.json", "--out", "out", "--resume"}, 3, no_file);
}

TEST_F(FaultsTest, names_that_are_no_text_are_escaped) {
  write_config("caf\xe9.json", small_config());
  const Outcome outcome = run({"eval", "-c", "caf\xe9.json", "-q"});
  EXPECT_EQ(outcome.exit_code, 0) << outcome.err;
  EXPECT_TRUE(exists("results/caf\\xe9/results.json"));
  expect({"inspect", "caf\xe9.h5"}, 3, "caf\\xe9.h5: no such file");
  expect({"inspect", "red\x1b[31m.h5"}, 3, "red\\x1b[31m.h5: no such file");
  expect({"eval", "-c", "small.json", "--set", "name=caf\xe9"}, 2, "is not UTF-8");
  ASSERT_EQ(run({"synth", "--seqlen", "8", "--out", "caf\xe9.safetensors"}).exit_code, 0);
  const Outcome inspected = run({"inspect", "caf\xe9.safetensors", "--format", "json"});
  EXPECT_EQ(inspected.exit_code, 0) << inspected.err;
  EXPECT_EQ(Json::parse(inspected.out)["tensors"].size(), 3u);
  EXPECT_THAT(run({"inspect", "caf\xe9.safetensors"}).out, HasSubstr("caf\\xe9.safetensors"));
}

TEST_F(FaultsTest, changed_data_is_not_resumed) {
  ASSERT_EQ(run({"synth", "--seqlen", "256", "--seed", "1", "--out", "x.safetensors"}).exit_code,
            0);
  Json config = small_config();
  config["inputs"] = Json::array({{{"source", "dump"}, {"path", "x.safetensors"}}});
  write_config("dump.json", config);
  const Arguments command = {"eval", "-c", "dump.json", "--out", "out", "--resume"};
  Arguments stopped = command;
  stopped.insert(stopped.end(), {"--stop-after-rows", "2"});
  ASSERT_EQ(run(stopped).exit_code, 130);
  const std::string journal = read_file(folder_ / "out/rows.partial.jsonl");
  ASSERT_EQ(run({"synth", "--seqlen", "256", "--seed", "2", "--out", "x.safetensors"}).exit_code,
            0);
  expect(command, 2, "input 'dump/x' is not what it was when the rows of");
  EXPECT_EQ(read_file(folder_ / "out/rows.partial.jsonl"), journal);
  ASSERT_EQ(run({"synth", "--seqlen", "256", "--seed", "1", "--out", "x.safetensors"}).exit_code,
            0);
  EXPECT_EQ(run(command).exit_code, 0);
}

TEST_F(FaultsTest, usage_that_means_nothing_is_2) {
  ASSERT_EQ(run({"eval", "-c", "small.json", "--out", "out"}).exit_code, 0);
  const auto table = [](Arguments more) {
    more.insert(more.begin(), {"table", "out", "--table", "matched_sparsity"});
    return more;
  };
  expect(table({"--knob", "s2o=tua"}), 2, "'s2o' has no parameter 'tua'; it has");
  expect(table({"--knob", "s3o=tau"}), 2, "the results hold no method 's3o'; they hold dense, s2o");
  expect({"match", "out", "--knob", "s2o=tua"}, 2, "'s2o' has no parameter 'tua'");
  for (const char* seed : {"-1", "18446744073709551616", "1x", "", "1.5"}) {
    expect(table({"--seed", seed}), 2, "expected an integer between 0 and 18446744073709551615");
    expect({"synth", "--seed", seed, "--out", "x.safetensors"}, 2, "expected an integer between 0");
  }
  const std::string model = (data_folder() / "fixtures/models/llama_tied").string();
  write_file(folder_ / "ids.txt", "1 2 3 4 5 6 7 8");
  const auto capture = [&](Arguments more) {
    more.insert(more.begin(), {"capture", "--model", model, "--tokens", "ids.txt"});
    return more;
  };
  for (const char* seqlen : {"0", "-1", "99999999999999999999"}) {
    expect(capture({"--seqlen", seqlen, "--out", "x.safetensors"}), 2,
           "expected an integer between 1");
  }
  expect(capture({"--out", "x.xyz"}), 2, "x.xyz: unknown file format");
  expect(capture({"--out", "x.npz"}), 2, "x.npz: s2o cannot write the npz format");
  expect(capture({"--out", "x.npy"}), 2, "x.npy: a file of the npy format holds 1 tensor");
  expect(capture({"--out", "x.safetensors.index.json"}), 2, "is the name of an index");
  expect({"synth", "--seqlen", "8", "--out", "x.xyz"}, 2, "x.xyz: unknown file format");
  expect(table({"--peers"}), 2, "--peers");
  expect(table({"--peers", "none.json"}), 2, "none.json: no such file");
  EXPECT_FALSE(exists("x.safetensors"));
}

TEST_F(FaultsTest, results_without_a_sparse_method_say_what_they_hold) {
  Json config = small_config();
  config["methods"] = Json::array({{{"name", "dense"}}});
  write_config("dense.json", config);
  ASSERT_EQ(run({"eval", "-c", "dense.json", "--out", "out"}).exit_code, 0);
  expect({"match", "out"}, 2, "dense (2 rows, compute density 1 or more)");
}

}  // namespace
}  // namespace s2o
