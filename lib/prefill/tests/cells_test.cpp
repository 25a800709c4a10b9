// A prefill config, expanded: settings, layers, and what is refused.
#include "lib/prefill/cells.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>

#include "lib/core/error.h"
#include "lib/prefill/prefill_schema.h"
#include "lib/testing/files.h"

namespace s2o {
namespace {

using ::testing::HasSubstr;
using testing_support::message_of;
using testing_support::read_file;
using testing_support::TempFolder;
using testing_support::write_file;
using Json = nlohmann::ordered_json;

Json document_with(const std::string& change) {
  Json document = Json::parse(R"({"model": {"shape": "tiny-llama"},
                                  "prompts": [{"random": true, "seqlen": 64}],
                                  "methods": [{"name": "dense"}]})");
  document.merge_patch(Json::parse(change));
  return document;
}

PrefillCells expand(const std::string& change) {
  return expand_prefill_cells(parse_prefill_config(document_with(change), "test.json"));
}

std::string refusal(const std::string& change) {
  return message_of<ConfigError>([&] { expand(change); });
}

TEST(prefill_cells, settings_are_the_product_of_prompts_and_sweeps) {
  const PrefillCells cells = expand(R"({"prompts": [{"random": true, "seqlen": [32, 64]}],
      "methods": [{"name": "dense"}, {"name": "s2o", "tau": [0.1, 0.2]}]})");
  EXPECT_EQ(cells.size(), 6u);
  EXPECT_EQ(cells.prompt(2).seqlen(), 32);
  EXPECT_EQ(cells.prompt(3).seqlen(), 64);
  EXPECT_EQ(cells.longest_prompt(), 64);
  EXPECT_TRUE(cells.setting(0).is_dense());
  EXPECT_EQ(cells.setting(5).row_params["tau"], 0.2);
  EXPECT_EQ(cells.config.methods[1]["block_m"], 128);  // defaults are written out
  EXPECT_EQ(cells.model_label, "tiny-llama (seeded weights)");
  EXPECT_EQ(cells.qkv_label, "model");
}

TEST(prefill_cells, dense_layers_and_changed_layers) {
  const PrefillCells cells = expand(R"({"dense_layers": [0], "methods": [{"name": "dense"},
      {"name": "s2o", "tau": 0.1, "layers": {"1": {"tau": 0.3}, "2-3": {"name": "streaming_llm"}}}]})");
  const PrefillSetting& setting = cells.settings[1];
  EXPECT_EQ(setting.layer_methods[0], &find_method("dense"));
  EXPECT_EQ(setting.layer_methods[1], &find_method("s2o"));
  EXPECT_EQ(setting.layer_params[1]->get_real("tau"), 0.3);
  EXPECT_EQ(setting.layer_methods[3], &find_method("streaming_llm"));
  EXPECT_EQ(setting.layers()[3].params->get_int("window"), 3968);
  EXPECT_FALSE(setting.is_dense());
  EXPECT_FALSE(setting.has_oracle());
  EXPECT_EQ(setting.row_params["dense_layers"], Json({0}));
  EXPECT_TRUE(setting.row_params.contains("layers"));
  EXPECT_FALSE(cells.settings[0].row_params.contains("dense_layers"));
}

// Dense attention in 8 bits is measured, not taken for the reference.
TEST(prefill_cells, dense_in_8_bits_is_not_the_reference) {
  const PrefillCells cells = expand(R"({"methods": [
      {"name": "dense", "compute": ["stored", "fp8"]},
      {"name": "dense", "layers": {"1": {"compute": "fp8"}}}]})");
  EXPECT_TRUE(cells.settings[0].is_dense());
  EXPECT_FALSE(cells.settings[1].is_dense());
  EXPECT_FALSE(cells.settings[2].is_dense());
}

TEST(prefill_cells, refusals_name_the_place) {
  EXPECT_THAT(refusal(R"({"dense_layers": [4]})"),
              HasSubstr("dense_layers: found 4, expected layers in [0, 4)"));
  EXPECT_THAT(refusal(R"({"model": {"shape": "llama-3.1-8"}})"),
              HasSubstr("model.shape: unknown shape 'llama-3.1-8', did you mean 'llama-3.1-8b'?"));
  EXPECT_THAT(refusal(R"({"methods": [{"name": "s3o"}]})"), HasSubstr("did you mean 's2o'?"));
  EXPECT_THAT(refusal(R"({"methods": [{"name": "s2o", "tua": 1}]})"),
              HasSubstr("test.json: methods.s2o.tua: unknown key, did you mean 'tau'?"));
  const auto layers = [](const std::string& text) {
    return R"({"dense_layers": [0], "methods": [{"name": "s2o", "layers": )" + text + "}]}";
  };
  EXPECT_THAT(refusal(layers(R"({"4": {}})")),
              HasSubstr("methods.s2o.layers.4: found '4', expected a layer in [0, 4)"));
  EXPECT_THAT(refusal(layers(R"({"3-2": {}})")), HasSubstr("found '3-2'"));
  EXPECT_THAT(refusal(layers(R"({"0-1": {}})")), HasSubstr("layer 0 is one of dense_layers too"));
  EXPECT_THAT(refusal(layers(R"({"1": {"tua": 1}})")), HasSubstr("did you mean 'tau'?"));
  EXPECT_THAT(refusal(layers(R"({"1": {"tau": [1, 2]}})")), HasSubstr("expected a number"));
  EXPECT_THAT(refusal(layers("3")), HasSubstr("expected an object by layer"));
  EXPECT_THAT(refusal(R"({"methods": [{"name": "s2o", "tau": [0.1, 0.1]}]})"),
              HasSubstr("test.json: methods.s2o: s2o tau=0.1 occurs twice"));
  EXPECT_THAT(refusal(R"({"replay": {"source": "synthetic", "seqlen": 32}})"),
              HasSubstr("replay: 32 tokens, expected at least 64 (the longest prompt)"));
  EXPECT_THAT(message_of<InputError>([&] { expand(R"({"model": "no/such/folder"})"); }),
              HasSubstr("no such folder"));
}

TEST(prefill_cells, a_tuned_file_of_another_shape_is_refused) {
  const TempFolder folder;
  write_file(folder / "tuned.json", R"({"kind": "s2o tuned settings", "schema_version": 1,
      "model": {"name": "m", "id": "0", "num_layers": 1, "num_q_heads": 2, "num_kv_heads": 1,
                "head_dim": 32},
      "context": {}, "target": {"loss": 0.01}, "objective": "time", "settings": [{"name": "dense"}],
      "lengths": [{"seqlen": 64, "layers": [[0, 0]]}]})");
  const Json tuned = {{"name", "tuned"}, {"path", (folder / "tuned.json").string()}};
  EXPECT_THAT(refusal(Json{{"methods", Json::array({tuned})}}.dump()),
              HasSubstr("is for 1 layers of 2 query and 1 KV heads of 32, the model has 4 of"));
}

TEST(prefill_cells, replay_of_a_capture_is_labelled) {
  const PrefillCells cells = expand(
      R"({"replay": {"source": "synthetic", "pattern": "sinks", "seqlen": 64, "num_q_heads": 4,
                     "num_kv_heads": 1, "head_dim": 128}})");
  ASSERT_EQ(cells.model.replay.size(), 1u);
  EXPECT_EQ(cells.qkv_label, "replay of synthetic/sinks");
}

struct Verdict {
  bool valid;
  const char* change;
};

const std::vector<Verdict>& verdicts() {
  static const std::vector<Verdict> kVerdicts = {
      {true, R"({})"},
      {true, R"({"$schema": "x", "name": "a", "seed": 3, "device": "cpu", "kernel": "ref"})"},
      {true, R"({"model": {"shape": "tiny-llama", "seed": 4}})"},
      {true, R"({"model": "folder"})"},
      {true, R"({"dense_layers": []})"},
      {true, R"({"dense_layers": [0, 1], "logit_positions": 0})"},
      {true,
       R"({"prompts": [{"tokens": "x.npy", "seqlen": [8, 16], "offset": 3, "loss": false}]})"},
      {true, R"({"prompts": [{"prompts": "x.jsonl", "tasks": ["a"], "seqlen": 8, "samples": 2}]})"},
      {true, R"({"methods": [{"name": "s2o", "tau": [0.1, 0.2], "layers": {"1-2": {"tau": 0}}}]})"},
      {true, R"({"replay": "capture.safetensors"})"},
      {true, R"({"replay": {"source": "synthetic", "seqlen": 64, "num_q_heads": 4,
                            "num_kv_heads": 1, "head_dim": 128}})"},
      {false, R"({"modle": "x"})"},
      {false, R"({"model": null})"},
      {false, R"({"model": 3})"},
      {false, R"({"model": {"shape": "gpt"}})"},
      {false, R"({"model": {"shape": null, "seed": 3}})"},
      {false, R"({"name": "a/b"})"},
      {false, R"({"dtype": "fp64"})"},
      {false, R"({"dense_layers": 0.5})"},
      {false, R"({"dense_layers": [-1]})"},
      {false, R"({"dense_layers": [1, 1]})"},
      {false, R"({"logit_positions": -1})"},
      {false, R"({"logit_positions": 4097})"},
      {false, R"({"prompts": []})"},
      {false, R"({"prompts": [{}]})"},
      {false, R"({"prompts": [{"random": false, "seqlen": 8}]})"},
      {false, R"({"prompts": [{"random": true}]})"},
      {false, R"({"prompts": [{"random": true, "seqlen": 0}]})"},
      {false, R"({"prompts": [{"tokens": "x.npy"}]})"},
      {false, R"({"prompts": [{"tokens": "x.npy", "seqlen": 8, "samples": 2}]})"},
      {false, R"({"prompts": [{"prompts": "x.jsonl", "samples": 0}]})"},
      {false, R"({"methods": []})"},
      {false, R"({"methods": [{"name": "dense", "tau": 0.1}]})"},
      {false, R"({"methods": [{"name": "s2o", "layers": 3}]})"},
      {false, R"({"methods": [{"name": "s2o", "layers": {"first": {}}}]})"},
      {false, R"({"replay": 3})"},
      {true, R"({"replay": {"source": "weights", "model": "m", "tokens": "t", "seqlen": 64}})"},
      {true, R"({"timing": {"repeats": 0}})"},
      {false, R"({"timing": {"repeats": -1}})"},
  };
  return kVerdicts;
}

TEST(prefill_schema, parser_gives_the_expected_verdicts) {
  for (const Verdict& verdict : verdicts()) {
    bool valid = true;
    try {
      expand(verdict.change);
    } catch (const ConfigError&) {
      valid = false;
    } catch (const InputError&) {
      // The config is fine, a file that it names is not there.
    }
    EXPECT_EQ(valid, verdict.valid) << verdict.change;
  }
}

TEST(prefill_schema, file_in_the_repository_is_the_generated_one) {
  const auto file = std::filesystem::path(S2O_SOURCE_DIR) / "configs/prefill_schema.json";
  EXPECT_EQ(read_file(file), prefill_config_schema().dump(2) + "\n")
      << "write it anew with: s2o list prefill_schema > configs/prefill_schema.json";
}

// The same verdicts from an independent implementation of JSON Schema.
TEST(prefill_schema, schema_gives_the_verdicts_of_the_parser) {
  if (std::system("python3 -c 'import jsonschema' 2>/dev/null") != 0) {
    GTEST_SKIP() << "python3-jsonschema is not installed";
  }
  Json cases = Json::array();
  for (const Verdict& verdict : verdicts()) {
    cases.push_back({{"valid", verdict.valid}, {"document", document_with(verdict.change)}});
  }
  const auto configs = std::filesystem::path(S2O_SOURCE_DIR) / "configs";
  for (const auto& file : std::filesystem::recursive_directory_iterator(configs)) {
    if (file.path().extension() != ".json") continue;
    const Json document = Json::parse(read_file(file.path()));
    const std::string schema = document.value("$schema", "");
    if (!schema.ends_with("prefill_schema.json")) continue;
    cases.push_back({{"valid", true}, {"document", document}});
  }
  EXPECT_GE(cases.size(), verdicts().size() + 3);
  const TempFolder folder;
  write_file(folder / "cases.json", cases.dump());
  write_file(folder / "schema.json", prefill_config_schema().dump());
  write_file(folder / "check.py",
             "import json, jsonschema, os, sys\n"
             "os.chdir(sys.argv[1])\n"
             "validator = jsonschema.Draft202012Validator(json.load(open('schema.json')))\n"
             "wrong = [c for c in json.load(open('cases.json'))\n"
             "         if validator.is_valid(c['document']) != c['valid']]\n"
             "for c in wrong: print('expected', c['valid'], json.dumps(c['document']))\n"
             "sys.exit(1 if wrong else 0)\n");
  const std::string command =
      "python3 '" + (folder / "check.py").string() + "' '" + folder.path().string() + "'";
  EXPECT_EQ(std::system(command.c_str()), 0);
}

}  // namespace
}  // namespace s2o
