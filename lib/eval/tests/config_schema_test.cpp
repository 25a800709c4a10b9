// configs/schema.json against the parser: both must give the same verdict.
#include "lib/eval/config_schema.h"

#include <gtest/gtest.h>

#include <cstdlib>

#include "lib/core/error.h"
#include "lib/eval/cells.h"
#include "lib/testing/files.h"

namespace s2o {
namespace {

using Json = nlohmann::ordered_json;
using testing_support::read_file;
using testing_support::TempFolder;
using testing_support::write_file;

struct Verdict {
  bool valid;
  const char* change;  // a JSON merge patch on a valid config
};

const std::vector<Verdict>& verdicts() {
  static const std::vector<Verdict> kVerdicts = {
      {true, R"({})"},
      {true, R"({"$schema": "schema.json", "name": "a", "seed": 3, "device": "cuda:1"})"},
      {true, R"({"timing": {"warmup": 0, "repeats": 1, "cpu_repeats": 2}})"},
      {true, R"({"dtype": "fp16", "save_outputs": true, "allow_nonfinite": true})"},
      {true, R"({"methods": [{"name": "s2o", "tau": [0.1, 0.2], "segment_size": 1.28e2}]})"},
      {true, R"({"methods": [{"name": "s2o", "stop_reduce": ["mean", "max"]}]})"},
      {true, R"({"inputs": [{"source": "synthetic", "pattern": ["sinks", "needles"]}]})"},
      {false, R"({"sed": 3})"},
      {false, R"({"seed": -1})"},
      {false, R"({"seed": "3"})"},
      {false, R"({"name": ""})"},
      {false, R"({"name": "a/b"})"},
      {false, R"({"name": ".."})"},
      {false, R"({"device": "gpu"})"},
      {false, R"({"device": "cuda:"})"},
      {false, R"({"dtype": "fp64"})"},
      {false, R"({"dtype": ["fp32", "bf16"]})"},
      {false, R"({"timing": {"repeats": 0}})"},
      {false, R"({"timing": {"repeats": 1.5}})"},
      {false, R"({"timing": {"repetitions": 3}})"},
      {false, R"({"timing": 3})"},
      {false, R"({"save_outputs": "yes"})"},
      {false, R"({"inputs": null})"},
      {false, R"({"inputs": []})"},
      {false, R"({"inputs": [{}]})"},
      {false, R"({"inputs": [{"source": "magic"}]})"},
      {false, R"({"inputs": [{"source": "synthetic", "seqlen": 0}]})"},
      {false, R"({"inputs": [{"source": "synthetic", "seqlen": []}]})"},
      {false, R"({"inputs": [{"source": "synthetic", "pattern": "plaid"}]})"},
      {false, R"({"inputs": [{"source": "synthetic", "layers": [0]}]})"},
      {false, R"({"inputs": [{"source": "weights", "model": "m", "tokens": "t"}]})"},
      {false, R"({"inputs": [{"source": "weights", "model": "m", "tokens": "t", "seqlen": -1}]})"},
      {false, R"({"inputs": [{"source": "weights", "model": 1, "tokens": "t", "seqlen": 8}]})"},
      {false, R"({"inputs": [{"source": "dump"}]})"},
      {false, R"({"inputs": [{"source": "dump", "path": "x.npz", "layout": "columns"}]})"},
      {false, R"({"methods": null})"},
      {false, R"({"methods": []})"},
      {false, R"({"methods": [{"name": "s3o"}]})"},
      {false, R"({"methods": [{"tau": 0.1}]})"},
      {false, R"({"methods": [{"name": "dense", "tau": 0.1}]})"},
      {false, R"({"methods": [{"name": "s2o", "tua": 0.1}]})"},
      {false, R"({"methods": [{"name": "s2o", "tau": -0.1}]})"},
      {false, R"({"methods": [{"name": "s2o", "tau": "0.1"}]})"},
      {false, R"({"methods": [{"name": "s2o", "tau": []}]})"},
      {false, R"({"methods": [{"name": "s2o", "tau": [0.1, -1]}]})"},
      {false, R"({"methods": [{"name": "s2o", "segment_size": 100.5}]})"},
      {false, R"({"methods": [{"name": "s2o", "stop_reduce": "median"}]})"},
  };
  return kVerdicts;
}

Json document_of(const Verdict& verdict) {
  Json document = Json::parse(R"({"inputs": [{"source": "synthetic", "seqlen": 256}],
                                  "methods": [{"name": "dense"}]})");
  document.merge_patch(Json::parse(verdict.change));
  return document;
}

TEST(config_schema, file_in_the_repository_is_the_generated_one) {
  const auto file = std::filesystem::path(S2O_SOURCE_DIR) / "configs/schema.json";
  EXPECT_EQ(read_file(file), config_schema().dump(2) + "\n")
      << "write it anew with: s2o list schema > configs/schema.json";
}

TEST(config_schema, parser_gives_the_expected_verdicts) {
  for (const Verdict& verdict : verdicts()) {
    bool valid = true;
    try {
      expand_cells(parse_run_config(document_of(verdict), "test.json"));
    } catch (const ConfigError&) {
      valid = false;
    } catch (const InputError&) {
      // The config is fine, a file that it names is not there.
    }
    EXPECT_EQ(valid, verdict.valid) << verdict.change;
  }
}

TEST(config_schema, every_method_with_its_defaults_is_valid) {
  for (const Method* method : all_methods()) {
    Json entry = {{"name", method->info().name}};
    entry.update(ParamSet(method->info().params).to_json());
    Json document = document_of({true, "{}"});
    document["methods"] = Json::array({entry});
    EXPECT_NO_THROW(expand_cells(parse_run_config(document, "test.json"))) << entry;
  }
}

// The same verdicts from an independent implementation of JSON Schema.
TEST(config_schema, schema_gives_the_verdicts_of_the_parser) {
  if (std::system("python3 -c 'import jsonschema' 2>/dev/null") != 0) {
    GTEST_SKIP() << "python3-jsonschema is not installed";
  }
  Json cases = Json::array();
  for (const Verdict& verdict : verdicts()) {
    cases.push_back({{"valid", verdict.valid}, {"document", document_of(verdict)}});
  }
  for (const Method* method : all_methods()) {
    Json entry = {{"name", method->info().name}};
    entry.update(ParamSet(method->info().params).to_json());
    Json document = document_of({true, "{}"});
    document["methods"] = Json::array({entry});
    cases.push_back({{"valid", true}, {"document", document}});
  }
  const auto configs = std::filesystem::path(S2O_SOURCE_DIR) / "configs";
  for (const auto& file : std::filesystem::recursive_directory_iterator(configs)) {
    if (file.path().extension() != ".json") continue;
    const Json document = Json::parse(read_file(file.path()));
    // Configs of `s2o prefill` have a schema of their own; a schema is no config.
    const std::string schema = document.value("$schema", "");
    if (schema.ends_with("prefill_schema.json") || schema.starts_with("https:")) continue;
    cases.push_back({{"valid", true}, {"document", document}});
  }
  const TempFolder folder;
  write_file(folder / "cases.json", cases.dump());
  write_file(folder / "schema.json", config_schema().dump());
  write_file(folder / "check.py",
             "import json, jsonschema, os, sys\n"
             "os.chdir(sys.argv[1])\n"
             "schema = json.load(open('schema.json'))\n"
             "jsonschema.Draft202012Validator.check_schema(schema)\n"
             "validator = jsonschema.Draft202012Validator(schema)\n"
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
