// What bad input gets: a message that says where and what, on stderr, and the exit code of its
// kind.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "app/tests/run_s2o.h"

namespace s2o {
namespace {

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

class ExitCodeTest : public AppTest {
 protected:
  void expect(const Arguments& arguments, int exit_code, const std::string& message) const {
    const Outcome outcome = run(arguments);
    EXPECT_EQ(outcome.exit_code, exit_code) << ::testing::PrintToString(arguments) << outcome.err;
    EXPECT_THAT(outcome.err, HasSubstr(message)) << ::testing::PrintToString(arguments);
  }
  // As above, with small.json changed by a JSON merge patch; nothing must be printed or written.
  void expect_config(const char* patch, int exit_code, const std::string& message) const {
    Json config = small_config();
    config.merge_patch(Json::parse(patch));
    write_config("changed.json", config);
    const Outcome outcome = run({"eval", "-c", "changed.json", "--out", "out"});
    EXPECT_EQ(outcome.exit_code, exit_code) << patch << outcome.err;
    EXPECT_THAT(outcome.err, HasSubstr(message)) << patch;
    EXPECT_EQ(outcome.out, "") << patch;
    EXPECT_FALSE(exists("out")) << patch;
  }
  // An input whose files are only read when its turn comes: rows with errors, then the exit code.
  void expect_failed_rows(const char* patch, int exit_code, const std::string& message) const {
    Json config = small_config();
    config.merge_patch(Json::parse(patch));
    write_config("changed.json", config);
    const Outcome outcome = run({"eval", "-c", "changed.json", "--out", "out"});
    EXPECT_EQ(outcome.exit_code, exit_code) << patch << outcome.err;
    EXPECT_THAT(outcome.err, HasSubstr(message)) << patch;
    EXPECT_THAT(outcome.out, HasSubstr("failed:")) << patch;
    EXPECT_TRUE(exists("out/results.json")) << patch;
    std::filesystem::remove_all(folder_ / "out");
  }
};

TEST_F(ExitCodeTest, usage_errors_are_2) {
  expect({}, 2, "subcommand is required");
  expect({"evl"}, 2, "unknown command 'evl', did you mean 'eval'?");
  expect({"eval"}, 2, "--config is required");
  expect({"eval", "-c", "small.json", "--sweep"}, 2, "--sweep");
  expect({"eval", "-c", "small.json", "--format", "yaml"}, 2, "formats: text, json, csv, markdown");
  expect({"eval", "-c", "small.json", "-v", "-q"}, 2, "excludes");
  expect({"list", "metods"}, 2, "unknown topic, did you mean 'methods'?");
  expect({"list", "methods", "s3o"}, 2, "did you mean 's2o'?");
  expect({"synth", "--pattern", "plaid", "--out", "x.safetensors"}, 2, "unknown value 'plaid'");
  expect({"synth", "--dtype", "fp8", "--out", "x.safetensors"}, 2, "--dtype: unknown dtype 'fp8'");
  const auto tune = [](const std::string& method, const std::string& target) {
    return std::vector<std::string>{"tune",     "--model",  "absent", "--tokens", "absent",
                                    "--seqlen", "64",       "--out",  "t.json",   "--method",
                                    method,     "--target", target};
  };
  expect(tune("s2o_plus", "loss=0"), 2, "--target: found 'loss=0', expected loss=NATS");
  expect(tune("s2oplus", "loss=0.1"), 2, "did you mean 's2o_plus'?");
  expect(tune("s2o_plus", "loss=0.1"), 3, "absent");
  std::vector<std::string> with_kernel = tune("s2o_plus", "loss=0.1");
  with_kernel.insert(with_kernel.end(), {"--kernel", "attention_sm81"});
  expect(with_kernel, 2, "--kernel: unknown kernel 'attention_sm81'");
  expect(tune(R"(dense, {"name": "s2o", "tau": [0.1, 2]})", "loss=0.1"), 2, "2, expected a value");
  expect({"heatmap", "--tuned", "t.json", "--layer", "3", "--out", "x.png"}, 2, "excludes");
}

TEST_F(ExitCodeTest, help_and_version_are_0_and_on_stdout) {
  for (const char* command :
       {"eval", "capture", "synth", "inspect", "list", "match", "table", "heatmap", "tune"}) {
    const Outcome outcome = run({command, "--help"});
    EXPECT_EQ(outcome.exit_code, 0) << command;
    EXPECT_THAT(outcome.out, HasSubstr(std::string("Example:\n  s2o ") + command));
    EXPECT_EQ(outcome.err, "");
  }
  EXPECT_THAT(run({"--help"}).out, HasSubstr("eval"));
  EXPECT_EQ(run({"--version"}).out.substr(0, 4), "s2o ");
}

TEST_F(ExitCodeTest, missing_and_broken_config_files_are_2) {
  expect({"eval", "-c", "smal"}, 2, "tried: smal, configs/smal.json, ");
  write_file(folder_ / "broken.json", "{\n  \"seed\": 1,,\n}");
  expect({"eval", "-c", "broken.json"}, 2, "broken.json: line 2, column 13");
  write_file(folder_ / "twice.json", R"({"seed": 1, "seed": 2})");
  expect({"eval", "-c", "twice.json"}, 2, "key 'seed' occurs twice");
  write_file(folder_ / "empty.json", "");
  expect({"eval", "-c", "empty.json"}, 2, "empty.json: line 1");
}

TEST_F(ExitCodeTest, wrong_configs_are_2_and_leave_no_trace) {
  expect_config(R"({"sed": 1})", 2, "changed.json: sed: unknown key, did you mean 'seed'?");
  expect_config(R"({"seed": "x"})", 2, "changed.json: seed: found \"x\" (string)");
  expect_config(R"({"methods": [{"name": "s2o", "treshold": 1}]})", 2,
                "changed.json: methods.s2o.treshold: unknown key");
  expect_config(R"({"methods": [{"name": "s2o", "tau": -0.1}]})", 2,
                "changed.json: methods.s2o.tau: found -0.1, expected a value");
  expect_config(R"({"methods": [{"name": "s2o", "tau": []}]})", 2,
                "changed.json: methods.s2o.tau: empty sweep");
  expect_config(R"({"methods": [{"name": "xatention"}]})", 2, "did you mean 'xattention'?");
  expect_config(R"({"inputs": [{"source": "synthetic", "seqlen": 0}]})", 2,
                "changed.json: inputs[0].seqlen: found 0");
  expect_config(R"({"inputs": [{"source": "dmp", "path": "x"}]})", 2, "did you mean 'dump'?");
}

TEST_F(ExitCodeTest, wrong_sets_are_2) {
  const auto set_error = [this](const std::string& assignment, const std::string& message) {
    expect({"eval", "-c", "small.json", "--set", assignment}, 2, message);
  };
  set_error("methods.s2o.tua=1", "methods.s2o.tua: unknown key, did you mean 'tau'?");
  set_error("methods.s3o.tau=1", "did you mean 's2o'?");
  set_error("tau=1", "--set tau=1: unknown key 'tau'");
  set_error("methods.s2o.tau=low", "found \"low\" (string), expected a number");
}

TEST_F(ExitCodeTest, missing_and_broken_input_files_are_3) {
  expect_config(R"({"inputs": [{"source": "dump", "path": "none.safetensors"}]})", 3,
                "none.safetensors");
  write_file(folder_ / "cut.safetensors", std::string("\x40\0\0\0\0\0\0\0{\"q\":", 13));
  expect_config(R"({"inputs": [{"source": "dump", "path": "cut.safetensors"}]})", 3,
                "cut.safetensors");
  write_file(folder_ / "huge.safetensors", std::string("\xff\xff\xff\xff\xff\xff\xff\x7f{}", 10));
  expect_config(R"({"inputs": [{"source": "dump", "path": "huge.safetensors"}]})", 3,
                "huge.safetensors");
  expect_config(
      R"({"inputs": [{"source": "weights", "model": "none", "tokens": "t", "seqlen": 8}]})", 3,
      "none");
  expect({"inspect", "none.safetensors"}, 3, "none.safetensors: no such file or folder");
  expect({"inspect", "cut.safetensors"}, 3, "cut.safetensors");
  write_file(folder_ / "other.json", "{}");
  expect({"inspect", "other.json"}, 3, "this is no results file of s2o");
}

TEST_F(ExitCodeTest, token_files_that_do_not_fit_the_model_are_3) {
  const std::string model = (data_folder() / "tiny-llama").string();
  write_file(folder_ / "tokens.txt", "1 2 3 4096 5");
  Json input = {{"source", "weights"}, {"model", model}, {"tokens", "tokens.txt"}, {"seqlen", 4}};
  const auto patch = [&] { return Json({{"inputs", {input}}}).dump(); };
  expect_config(patch().c_str(), 3, "4096");
  input["seqlen"] = 6;
  expect_config(patch().c_str(), 3, "tokens.txt");
  expect({"capture", "--model", model, "--tokens", "tokens.txt", "--seqlen", "4", "--layers", "0",
          "--out", "capture.safetensors"},
         3, "4096");
  for (const char* layers : {"x", "1:", "1:2", "4"}) {  // 4 layers, 2 KV heads
    expect({"capture", "--model", model, "--tokens", "tokens.txt", "--seqlen", "4", "--layers",
            layers, "--out", "capture.safetensors"},
           2, "layers: found");
  }
  EXPECT_FALSE(exists("capture.safetensors"));
}

TEST_F(ExitCodeTest, nonfinite_input_is_3_with_its_index_and_1_if_allowed) {
  ASSERT_EQ(run({"synth", "--seqlen", "8", "--num-q-heads", "1", "--num-kv-heads", "1",
                 "--head-dim", "4", "--dtype", "fp32", "--out", "x.safetensors"})
                .exit_code,
            0);
  std::string bytes = read_file(folder_ / "x.safetensors");
  // The last value of the file: v, head 0, token 7, element 3.
  bytes.replace(bytes.size() - 4, 4, std::string("\x00\x00\xc0\x7f", 4));
  write_file(folder_ / "x.safetensors", bytes);
  const char* patch = R"({"inputs": [{"source": "dump", "path": "x.safetensors"}]})";
  expect_failed_rows(patch, 3, "'v'");
  const Outcome allowed = run({"eval", "-c", "changed.json", "--allow-nonfinite", "--out", "out"});
  EXPECT_EQ(allowed.exit_code, 1);
  EXPECT_THAT(allowed.err, HasSubstr("output values are not finite"));
}

TEST_F(ExitCodeTest, some_failed_cells_are_1_and_the_rest_is_there) {
  Json config = small_config();
  config["inputs"].push_back(
      {{"source", "synthetic"}, {"seqlen", 1 << 24}, {"num_q_heads", 4096}, {"head_dim", 1024}});
  write_config("half.json", config);
  const Outcome outcome = run({"eval", "-c", "half.json", "--out", "out", "--format", "json"});
  EXPECT_EQ(outcome.exit_code, 1);
  const Json document = Json::parse(outcome.out);
  ASSERT_EQ(document["rows"].size(), 15u);
  EXPECT_TRUE(document["rows"][9]["error"].is_null());
  EXPECT_THAT(document["rows"][10]["error"].get<std::string>(), HasSubstr("bytes of memory"));
  EXPECT_TRUE(document["rows"][10]["mse"].is_null());
}

// Whichever command reads them, and before anything is computed.
TEST_F(ExitCodeTest, settings_that_can_never_run_are_2) {
  expect_config(R"({"methods": [{"name": "xattention", "stride": [8, 7]}]})", 2,
                "changed.json: methods.xattention.stride: found 7, expected 4, 8 or 16");
  expect_config(R"({"methods": [{"name": "s2o", "segment_size": 200}]})", 2,
                "methods.s2o.segment_size: found 200, expected a multiple of block_m 128");
  expect_config(R"({"methods": [{"name": "flash_prefill", "compensation": "centroid"}]})", 2,
                "methods.flash_prefill.compensation: found 'centroid' with mean_correction true");
  expect_config(
      R"({"inputs": [{"source": "synthetic", "num_q_heads": 3, "num_kv_heads": 2}]})", 2,
      "changed.json: inputs[0].num_q_heads: found 3, expected a multiple of num_kv_heads 2");
  expect({"synth", "--head-dim", "3", "--out", "x.safetensors"}, 2,
         "synth.head_dim: found 3, expected a multiple of 2");
  const Arguments set = {"--set", "methods.s2o.segment_size=128,96"};
  const std::string message = "methods.s2o.segment_size: found 96, expected a multiple of block_m";
  const auto with_set = [&set](Arguments arguments) {
    arguments.insert(arguments.end(), set.begin(), set.end());
    return arguments;
  };
  expect(with_set({"eval", "-c", "small.json", "--out", "out"}), 2, message);
  expect(with_set({"heatmap", "--config", "small.json", "--out", "x.png"}), 2, message);
  Json prefill = Json::parse(R"({"prompts": [{"random": true, "seqlen": 8}],
      "methods": [{"name": "s2o", "layers": {"0": {"block_m": 96}}}]})");
  prefill["model"] = (data_folder() / "fixtures/models/llama_tied").string();
  write_config("prefill.json", prefill);
  expect({"prefill", "-c", "prefill.json", "--out", "out"}, 2,
         "layers.0.segment_size: found 128, expected a multiple of block_m 96");
  expect(with_set({"prefill", "-c", "prefill.json", "--out", "out"}), 2, message);
  EXPECT_FALSE(exists("out"));
}

TEST_F(ExitCodeTest, what_this_machine_cannot_do_is_4) {
  expect_failed_rows(
      R"({"inputs": [{"source": "synthetic", "seqlen": 16777216, "num_q_heads": 4096}]})", 4,
      "bytes of memory");
  const Json list = Json::parse(run({"list", "devices", "--format", "json"}).out);
  for (const Json& device : list["devices"]) {
    const bool is_cuda = device["name"].get<std::string>().starts_with("cuda");
    if (is_cuda && device["usable"] == true) GTEST_SKIP() << "CUDA runs here";
  }
  expect({"eval", "-c", "small.json", "--device", "cuda", "--out", "out"}, 4, "device cuda:0: ");
  EXPECT_FALSE(exists("out"));
}

TEST_F(ExitCodeTest, output_folders_that_cannot_be_used_are_2) {
  write_file(folder_ / "file", "");
  expect({"eval", "-c", "small.json", "--out", "file"}, 2, "--out file: cannot be made a folder");
  expect({"eval", "-c", "small.json", "--out", "file/below"}, 2, "cannot be made a folder");
  if (geteuid() == 0) return;  // root may write everywhere
  std::filesystem::create_directory(folder_ / "closed");
  std::filesystem::permissions(
      folder_ / "closed", std::filesystem::perms::owner_read | std::filesystem::perms::owner_exec);
  expect({"eval", "-c", "small.json", "--out", "closed"}, 2, "cannot be written");
}

TEST_F(ExitCodeTest, full_disk_is_4_before_anything_is_computed) {
  const Outcome outcome =
      run({"eval", "-c", "small.json", "--out", "out"}, {.max_file_bytes = 16 << 10});
  EXPECT_EQ(outcome.exit_code, 4);
  EXPECT_THAT(outcome.err, HasSubstr("out/"));
  EXPECT_EQ(outcome.out, "");
}

TEST_F(ExitCodeTest, disk_that_fills_up_keeps_and_prints_the_rows) {
  // Results with outputs: 512 x 4 x 32 floats are 256 KiB a row.
  const Outcome outcome = run({"eval", "-c", "small.json", "--set", "save_outputs=true", "--set",
                               "inputs.0.seqlen=128,512", "--out", "out"},
                              {.max_file_bytes = 200 << 10});
  EXPECT_EQ(outcome.exit_code, 4);
  EXPECT_THAT(outcome.err, HasSubstr("5 of 10 rows are safe in out/rows.partial.jsonl"));
  EXPECT_THAT(outcome.out, HasSubstr("seqlen 128"));
  const Outcome resumed = run({"eval", "-c", "small.json", "--set", "save_outputs=true", "--set",
                               "inputs.0.seqlen=128,512", "--out", "out", "--resume", "-v"});
  EXPECT_EQ(resumed.exit_code, 0) << resumed.err;
  EXPECT_THAT(resumed.err, HasSubstr("5 of 10 rows are there"));
}

TEST_F(ExitCodeTest, stdout_that_cannot_be_written_does_not_cost_the_files) {
  if (!std::filesystem::exists("/dev/full")) GTEST_SKIP() << "no /dev/full";
  RunningS2o process(folder_.path(), {"eval", "-c", "small.json", "--out", "out"},
                     {.stdout_file = "/dev/full"});
  while (process.is_running()) usleep(10'000);
  EXPECT_THAT(read_file(folder_ / ".stderr"), HasSubstr("cannot write the result to stdout"));
  EXPECT_EQ(Json::parse(read_file(folder_ / "out/results.json"))["rows"].size(), 10u);
}

}  // namespace
}  // namespace s2o
