// Runs the binary: exit codes, what goes to stdout and what to stderr, resume, golden tables.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <sstream>
#include <string>
#include <thread>
#include <vector>

namespace s2o {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;
using ::testing::HasSubstr;

std::string read_file(const fs::path& path) {
  std::ifstream stream(path, std::ios::binary);
  std::stringstream text;
  text << stream.rdbuf();
  return text.str();
}

class Cli : public ::testing::Test {
 protected:
  struct Result {
    int exit_code;
    std::string out;
    std::string err;
  };

  void SetUp() override {
    folder_ = fs::path(::testing::TempDir()) /
              ("s2o_cli_" + std::to_string(getpid()) + "_" +
               ::testing::UnitTest::GetInstance()->current_test_info()->name());
    fs::create_directories(folder_);
  }
  void TearDown() override { fs::remove_all(folder_); }

  pid_t start(const std::vector<std::string>& arguments) {
    std::vector<char*> argv;
    std::string program = std::string(S2O_BINARY_DIR) + "/s2o";
    argv.push_back(program.data());
    std::vector<std::string> copies = arguments;
    for (std::string& argument : copies) argv.push_back(argument.data());
    argv.push_back(nullptr);
    const pid_t child = fork();
    if (child == 0) {
      if (chdir(folder_.c_str()) != 0 || freopen("stdout.txt", "w", stdout) == nullptr ||
          freopen("stderr.txt", "w", stderr) == nullptr) {
        _exit(126);
      }
      execv(argv[0], argv.data());
      _exit(127);
    }
    return child;
  }

  Result finish(pid_t child) {
    int status = 0;
    waitpid(child, &status, 0);
    return {WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status),
            read_file(folder_ / "stdout.txt"), read_file(folder_ / "stderr.txt")};
  }

  Result run(const std::vector<std::string>& arguments) { return finish(start(arguments)); }

  fs::path write(const std::string& name, const std::string& text) {
    std::ofstream(folder_ / name, std::ios::binary) << text;
    return folder_ / name;
  }

  // A config with one small synthetic input.
  fs::path config(const std::string& methods, const std::string& input = "") {
    return write("config.json", R"({"name": "cli", "inputs": [{"source": "synthetic", "seqlen": 300,
      "num_q_heads": 2, "num_kv_heads": 1, "head_dim": 64)" +
                                    input + R"(}], "methods": [)" + methods + "]}");
  }

  fs::path folder_;
};

TEST_F(Cli, results_go_to_stdout_and_logs_to_stderr) {
  config(R"({"name": "dense"}, {"name": "s2o", "tau": [0.1, 0.0]})");
  const Result result = run({"eval", "--config", "config.json", "--format", "json", "-v"});
  EXPECT_EQ(result.exit_code, 0) << result.err;
  const json parsed = json::parse(result.out);
  ASSERT_EQ(parsed.at("rows").size(), 3u);
  EXPECT_LE(parsed["rows"][2]["relative_l2"].get<double>(), 1e-5);  // tau = 0
  EXPECT_THAT(result.err, HasSubstr("s2o: "));
  EXPECT_EQ(result.err.find('\r'), std::string::npos) << "progress bar without a terminal";
  EXPECT_TRUE(fs::exists(folder_ / "results/cli/results.json"));
  EXPECT_TRUE(fs::exists(folder_ / "results/cli/results.h5"));
}

TEST_F(Cli, usage_and_config_errors_exit_2_and_name_the_place) {
  config(R"({"name": "s2o"})");
  write("broken.json", "{\"name\": \"x\"\n \"methods\": []}");
  write("unknown.json", R"({"nam": "x", "inputs": [], "methods": []})");
  const auto methods = [this](const std::string& text) { return config(text).filename().string(); };
  struct Case {
    std::vector<std::string> arguments;
    const char* message;
  };
  for (const Case& c :
       {Case{{"eval"}, "--config"}, Case{{"nonsense"}, ""},
        Case{{"eval", "--config", "absent"}, "absent.json"},
        Case{{"eval", "--config", "broken.json"}, "line 2"},
        Case{{"eval", "--config", "unknown.json"}, "did you mean 'name'"},
        Case{{"eval", "--config", "config.json", "--set", "methods.s2o.taau=1"},
             "did you mean 'tau'"},
        Case{{"eval", "--config", "config.json", "--set", "methods.s2o.tau=-1"}, "found -1"},
        Case{{"eval", "--config", "config.json", "--set", "dtype=bf17"}, "bf16"},
        Case{{"eval", "--config", "config.json", "--set", "inputs.0.seqlen=0"}, "seqlen"}}) {
    const Result result = run(c.arguments);
    EXPECT_EQ(result.exit_code, 2) << c.message << "\n" << result.err;
    EXPECT_THAT(result.err, HasSubstr(c.message));
    EXPECT_EQ(result.out, "") << c.message;
  }
  const Result empty = run({"eval", "--config", methods(R"({"name": "s2o", "tau": []})")});
  EXPECT_EQ(empty.exit_code, 2);
  EXPECT_THAT(empty.err, HasSubstr("empty sweep"));
  const Result method = run({"eval", "--config", methods(R"({"name": "s20"})")});
  EXPECT_EQ(method.exit_code, 2);
  EXPECT_THAT(method.err, HasSubstr("did you mean 's2o'"));
}

TEST_F(Cli, broken_input_files_exit_3) {
  write("short.safetensors", "abc");
  write("huge.safetensors", std::string("\xff\xff\xff\xff\xff\xff\xff\x7f{}", 10));
  write("ids.txt", "1 2 999999");
  for (const char* name : {"short.safetensors", "huge.safetensors", "absent.safetensors"}) {
    write("dump.json", R"({"inputs": [{"source": "dump", "path": ")" + std::string(name) +
                           R"("}], "methods": [{"name": "dense"}]})");
    const Result result = run({"eval", "--config", "dump.json"});
    EXPECT_EQ(result.exit_code, 3) << name << result.err;
    EXPECT_THAT(result.err, HasSubstr(name));
    EXPECT_EQ(run({"inspect", name}).exit_code, 3) << name;
  }
  const std::string model = std::string(S2O_SOURCE_DIR) + "/data/tiny-llama";
  const Result tokens = run({"capture", "--model", model, "--tokens", "ids.txt", "--seqlen", "3",
                             "--layers", "0", "--out", "capture.safetensors"});
  EXPECT_EQ(tokens.exit_code, 3) << tokens.err;
  EXPECT_THAT(tokens.err, HasSubstr("999999"));
  EXPECT_FALSE(fs::exists(folder_ / "capture.safetensors"));
}

TEST_F(Cli, nonfinite_input_exits_with_a_failed_row_unless_allowed) {
  config(R"({"name": "dense"})");
  // A tensor file by hand: q, k, v of [1, 2, 2] in F32, one NaN in k.
  std::string header =
      R"({"q":{"dtype":"F32","shape":[1,2,2],"data_offsets":[0,16]},"k":{"dtype":"F32","shape":[1,2,2],"data_offsets":[16,32]},"v":{"dtype":"F32","shape":[1,2,2],"data_offsets":[32,48]}})";
  while (header.size() % 8 != 0) header += ' ';
  std::string file(8, '\0');
  file[0] = static_cast<char>(header.size() & 0xff);
  file[1] = static_cast<char>(header.size() >> 8);
  file += header;
  std::vector<float> values(12, 0.5f);
  values[7] = std::nanf("");
  file.append(reinterpret_cast<const char*>(values.data()), 48);
  write("nan.safetensors", file);
  write(
      "nan.json",
      R"({"inputs": [{"source": "dump", "path": "nan.safetensors"}], "methods": [{"name": "dense"}]})");
  const Result refused = run({"eval", "--config", "nan.json"});
  EXPECT_TRUE(refused.exit_code == 1 || refused.exit_code == 3) << refused.exit_code;
  EXPECT_THAT(refused.err + refused.out, HasSubstr("'k'"));
  EXPECT_THAT(refused.err + refused.out, HasSubstr("token 1"));
  const Result allowed = run({"eval", "--config", "nan.json", "--allow-nonfinite"});
  EXPECT_NE(allowed.exit_code, 3) << allowed.err;
}

TEST_F(Cli, failing_cell_exits_1_and_keeps_the_others) {
  config(R"({"name": "s2o", "segment_size": 200}, {"name": "dense"})");
  const Result result = run({"eval", "--config", "config.json", "--format", "json"});
  EXPECT_EQ(result.exit_code, 1) << result.err;
  const json rows = json::parse(result.out).at("rows");
  EXPECT_THAT(rows[0]["error"].get<std::string>(), HasSubstr("block_m"));
  EXPECT_TRUE(rows[0]["mse"].is_null());
  EXPECT_TRUE(rows[1]["error"].is_null());
}

TEST_F(Cli, cuda_without_a_gpu_exits_4) {
  if (fs::exists("/dev/nvidiactl")) GTEST_SKIP() << "a GPU is here";
  config(R"({"name": "dense"})");
  const Result result = run({"eval", "--config", "config.json", "--device", "cuda"});
  EXPECT_EQ(result.exit_code, 4) << result.err;
  EXPECT_EQ(result.out, "");
}

TEST_F(Cli, unwritable_output_is_found_before_computing) {
  config(R"({"name": "dense"})");
  write("file", "");
  const Result result = run({"eval", "--config", "config.json", "--out", "file/below"});
  EXPECT_EQ(result.exit_code, 2) << result.err;
  EXPECT_THAT(result.err, HasSubstr("file/below"));
}

TEST_F(Cli, two_runs_are_identical_apart_from_times) {
  config(R"({"name": "s2o", "tau": 0.05}, {"name": "xattention"}, {"name": "oracle_token"})");
  const auto values = [this](const char* out) {
    const Result result = run({"eval", "--config", "config.json", "--out", out});
    EXPECT_EQ(result.exit_code, 0) << result.err;
    json rows = json::parse(read_file(folder_ / out / "results.json")).at("rows");
    for (json& row : rows) {
      for (const char* key :
           {"plan_latency_ms", "attention_latency_ms", "total_latency_ms", "latency_p10_ms",
            "latency_p90_ms", "speedup_vs_dense", "effective_tflops"}) {
        row.erase(key);
      }
    }
    return rows.dump();
  };
  EXPECT_EQ(values("a"), values("b"));
}

TEST_F(Cli, rows_of_an_interrupted_run_are_kept_and_resumed) {
  config(R"({"name": "s2o", "tau": [0.5, 0.4, 0.3, 0.2, 0.1, 0.05, 0.04, 0.03, 0.02, 0.01]})",
         R"(, "strength": 4)");
  const std::string seqlen = "inputs.0.seqlen=6000";
  const pid_t child = start({"eval", "--config", "config.json", "--out", "run", "--set", seqlen});
  const fs::path journal = folder_ / "run/rows.partial.jsonl";
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(120);
  while (std::chrono::steady_clock::now() < deadline) {
    const std::string rows = fs::exists(journal) ? read_file(journal) : "";
    if (std::count(rows.begin(), rows.end(), '\n') >= 3) break;
    if (fs::exists(folder_ / "run/results.json")) break;
    std::this_thread::sleep_for(std::chrono::milliseconds(2));
  }
  kill(child, SIGINT);
  const Result interrupted = finish(child);
  if (interrupted.exit_code == 0) GTEST_SKIP() << "finished before the signal";
  EXPECT_EQ(interrupted.exit_code, 130) << interrupted.err;
  const auto kept = json::parse(read_file(folder_ / "run/results.json")).at("rows").size();
  EXPECT_GE(kept, 1u);

  const Result other =
      run({"eval", "--config", "config.json", "--out", "run", "--resume", "--set", "seed=1"});
  EXPECT_EQ(other.exit_code, 2) << other.err;
  EXPECT_THAT(other.err, HasSubstr("seed"));

  const Result resumed =
      run({"eval", "--config", "config.json", "--out", "run", "--set", seqlen, "--resume"});
  EXPECT_EQ(resumed.exit_code, 0) << resumed.err;
  const json rows = json::parse(read_file(folder_ / "run/results.json")).at("rows");
  ASSERT_EQ(rows.size(), 10u);
  EXPECT_EQ(rows[9]["params"]["tau"], 0.01);
}

TEST_F(Cli, list_help_and_version_succeed) {
  for (const std::vector<std::string>& arguments : {std::vector<std::string>{"--help"},
                                                    {"--version"},
                                                    {"list"},
                                                    {"list", "methods"},
                                                    {"eval", "--help"},
                                                    {"match", "--help"},
                                                    {"table", "--help"},
                                                    {"capture", "--help"},
                                                    {"synth", "--help"},
                                                    {"inspect", "--help"},
                                                    {"heatmap", "--help"}}) {
    const Result result = run(arguments);
    EXPECT_EQ(result.exit_code, 0) << result.err;
    EXPECT_NE(result.out, "");
    EXPECT_EQ(result.err, "");
  }
}

TEST_F(Cli, schema_in_the_repository_is_the_generated_one) {
  const Result result = run({"list", "schema"});
  EXPECT_EQ(result.exit_code, 0);
  EXPECT_EQ(json::parse(result.out),
            json::parse(read_file(fs::path(S2O_SOURCE_DIR) / "configs/schema.json")))
      << "s2o list schema > configs/schema.json";
}

TEST_F(Cli, synthetic_dump_evaluates_as_the_source_itself) {
  const Result synth =
      run({"synth", "--pattern", "stripes", "--seqlen", "300", "--out", "s.safetensors"});
  ASSERT_EQ(synth.exit_code, 0) << synth.err;
  write(
      "dump.json",
      R"({"inputs": [{"source": "dump", "path": "s.safetensors"}, {"source": "synthetic", "pattern": "stripes", "seqlen": 300}], "methods": [{"name": "s2o", "tau": 0.05}]})");
  const Result result = run({"eval", "--config", "dump.json", "--format", "json"});
  ASSERT_EQ(result.exit_code, 0) << result.err;
  const json rows = json::parse(result.out).at("rows");
  ASSERT_EQ(rows.size(), 2u);
  EXPECT_EQ(rows[0]["mse"], rows[1]["mse"]);
}

}  // namespace
}  // namespace s2o
