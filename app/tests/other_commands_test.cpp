// The commands around `s2o eval`.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "app/tests/run_s2o.h"

namespace s2o {
namespace {

using ::testing::HasSubstr;
using testing_support::AppTest;
using testing_support::data_folder;
using testing_support::Outcome;
using testing_support::read_file;
using testing_support::small_config;
using Json = nlohmann::ordered_json;

class CommandTest : public AppTest {};

TEST_F(CommandTest, list_names_the_registries) {
  const Outcome text = run({"list"});
  EXPECT_EQ(text.exit_code, 0);
  EXPECT_EQ(text.err, "");
  for (const char* name : {"streaming_llm", "mass_recall", "safetensors", "attention_ref",
                           "matched_sparsity", "cpu"}) {
    EXPECT_THAT(text.out, HasSubstr(name));
  }
  const Json all = Json::parse(run({"list", "--format", "json"}).out);
  for (const char* topic : {"methods", "metrics", "formats", "kernels", "tables", "devices"}) {
    EXPECT_FALSE(all[topic].empty()) << topic;
    EXPECT_EQ(Json::parse(run({"list", topic, "--format", "json"}).out)[topic].size(),
              all[topic].size());
  }
}

TEST_F(CommandTest, list_of_a_method_shows_its_parameters) {
  EXPECT_THAT(run({"list", "methods", "s2o"}).out, HasSubstr("segment_size"));
  EXPECT_THAT(run({"list", "methods", "tuned"}).out, HasSubstr("file of s2o tune"));
  const Json items = Json::parse(run({"list", "methods", "s2o", "--format", "json"}).out);
  ASSERT_EQ(items["methods"].size(), 1u);
  EXPECT_EQ(items["methods"][0]["knob"], "tau");
}

TEST_F(CommandTest, synth_is_seeded_and_inspect_shows_it) {
  const std::vector<std::string> synth = {
      "synth", "--pattern", "slashes", "--seqlen", "100", "--num-q-heads", "4", "--head-dim", "32"};
  const auto with = [&synth](std::vector<std::string> more) {
    more.insert(more.begin(), synth.begin(), synth.end());
    return more;
  };
  EXPECT_EQ(run(with({"--out", "a.safetensors"})).exit_code, 0);
  EXPECT_EQ(run(with({"--out", "b.safetensors"})).exit_code, 0);
  EXPECT_EQ(run(with({"--out", "c.safetensors", "--seed", "1"})).exit_code, 0);
  EXPECT_EQ(read_file(folder_ / "a.safetensors"), read_file(folder_ / "b.safetensors"));
  EXPECT_NE(read_file(folder_ / "a.safetensors"), read_file(folder_ / "c.safetensors"));
  const Json tensors =
      Json::parse(run({"inspect", "a.safetensors", "--format", "json"}).out)["tensors"];
  ASSERT_EQ(tensors.size(), 3u);
  EXPECT_EQ(tensors[0]["name"], "q");
  EXPECT_EQ(tensors[0]["dtype"], "BF16");
  EXPECT_EQ(tensors[0]["shape"], Json({4, 100, 32}));
  EXPECT_EQ(tensors[0]["bytes"], 4 * 100 * 32 * 2);
}

TEST_F(CommandTest, capture_then_dump_is_what_weights_gives) {
  const std::string model = (data_folder() / "tiny-llama").string();
  const std::string tokens = (data_folder() / "tokens/war_and_peace.safetensors").string();
  const Outcome captured = run({"capture", "--model", model, "--tokens", tokens, "--seqlen", "200",
                                "--layers", "0,1", "--device", "cpu", "--out", "dump.safetensors"});
  ASSERT_EQ(captured.exit_code, 0) << captured.err;
  EXPECT_EQ(captured.out, "");
  EXPECT_THAT(run({"inspect", "dump.safetensors"}).out, HasSubstr("layer.1.q"));
  Json config = small_config();
  config["dtype"] = "bf16";
  config["inputs"] = {{{"source", "dump"}, {"path", "dump.safetensors"}},
                      {{"source", "weights"},
                       {"model", model},
                       {"tokens", tokens},
                       {"seqlen", 200},
                       {"layers", {0, 1}}}};
  write_config("both.json", config);
  const Outcome outcome = run({"eval", "-c", "both.json", "--out", "out", "--format", "json"});
  ASSERT_EQ(outcome.exit_code, 0) << outcome.err;
  const Json rows = Json::parse(outcome.out)["rows"];
  ASSERT_EQ(rows.size(), 20u);
  for (std::size_t i = 0; i < 10; ++i) {
    EXPECT_EQ(rows[i]["layer"], rows[10 + i]["layer"]);
    EXPECT_EQ(rows[i]["mse"], rows[10 + i]["mse"]) << i;
  }
}

TEST_F(CommandTest, synthetic_dump_evaluates_as_the_source_itself) {
  ASSERT_EQ(
      run({"synth", "--pattern", "stripes", "--seqlen", "300", "--out", "s.safetensors"}).exit_code,
      0);
  write_config("both.json", Json::parse(R"({
    "inputs": [{"source": "dump", "path": "s.safetensors"},
               {"source": "synthetic", "pattern": "stripes", "seqlen": 300}],
    "methods": [{"name": "s2o", "tau": 0.05}]})"));
  const Outcome outcome = run({"eval", "-c", "both.json", "--out", "out", "--format", "json"});
  ASSERT_EQ(outcome.exit_code, 0) << outcome.err;
  const Json rows = Json::parse(outcome.out)["rows"];
  ASSERT_EQ(rows.size(), 2u);
  EXPECT_EQ(rows[0]["mse"], rows[1]["mse"]);
}

TEST_F(CommandTest, inspect_knows_models_and_results) {
  const Outcome model = run({"inspect", (data_folder() / "tiny-llama").string()});
  EXPECT_THAT(model.out, HasSubstr("architecture: LlamaForCausalLM"));
  EXPECT_THAT(model.out, HasSubstr("model.embed_tokens.weight"));
  run({"eval", "-c", "small.json", "--out", "out"});
  for (const char* path : {"out", "out/results.json", "out/results.h5"}) {
    const Json facts = Json::parse(run({"inspect", path, "--format", "json"}).out);
    EXPECT_EQ(facts["rows"], 10) << path;
    EXPECT_EQ(facts["methods"]["s2o"], 4) << path;
  }
}

TEST_F(CommandTest, shipped_configs_without_weights_run) {
  const Outcome outcome = run({"eval", "-c", "smoke", "--out", "out", "--check"});
  EXPECT_EQ(outcome.exit_code, 0) << outcome.err;
}

}  // namespace
}  // namespace s2o
