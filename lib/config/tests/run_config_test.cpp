#include "lib/config/run_config.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "lib/core/error.h"
#include "lib/testing/files.h"

namespace s2o {
namespace {

using Json = nlohmann::ordered_json;
using ::testing::AllOf;
using ::testing::HasSubstr;
using testing_support::message_of;
using testing_support::TempFolder;
using testing_support::write_file;

Json small_config() {
  return Json::parse(R"({
    "inputs": [{"source": "synthetic", "seqlen": 128}, {"source": "dump", "path": "x.npz"}],
    "methods": [{"name": "dense"}, {"name": "s2o", "tau": 0.1}, {"name": "s2o", "tau": 0.2}]})");
}

RunConfig parse(const Json& document) { return parse_run_config(document, "here/runs.json"); }

Json with_set(const std::string& assignment) {
  Json document = small_config();
  apply_set(document, assignment);
  return document;
}

std::string set_error(const std::string& assignment) {
  return message_of<ConfigError>([&] { with_set(assignment); });
}

TEST(run_config, defaults_are_those_of_the_struct) {
  const RunConfig config = parse(small_config());
  EXPECT_EQ(config.name, "runs");
  EXPECT_EQ(config.base_folder, "here");
  EXPECT_EQ(config.seed, 0u);
  EXPECT_EQ(config.device.kind, DeviceKind::kAuto);
  EXPECT_EQ(config.dtype, "bf16");
  EXPECT_EQ(config.timing.warmup, 3);
  EXPECT_EQ(config.timing.repeats, 20);
  EXPECT_EQ(config.timing.cpu_repeats, 1);
  EXPECT_FALSE(config.save_outputs);
  EXPECT_FALSE(config.allow_nonfinite);
  EXPECT_EQ(config.kernel, "auto");
  EXPECT_EQ(config.methods.size(), 3u);
}

TEST(run_config, resolved_config_parses_to_itself) {
  Json document = small_config();
  document["name"] = "other";
  document["seed"] = 7;
  document["device"] = "cuda:1";
  document["dtype"] = "fp32";
  document["timing"] = {{"repeats", 5}};
  document["save_outputs"] = true;
  const Json resolved = to_json(parse(document));
  EXPECT_EQ(resolved["timing"]["warmup"], 3);
  EXPECT_EQ(to_json(parse(resolved)), resolved);
}

TEST(run_config, wrong_documents_name_the_place) {
  struct Case {
    const char* change;  // a JSON merge patch on small_config()
    const char* expected;
  };
  const std::vector<Case> cases = {
      {R"({"sed": 1})", "here/runs.json: sed: unknown key, did you mean 'seed'?"},
      {R"({"seed": -1})", "here/runs.json: seed: found -1"},
      {R"({"seed": "1"})", "here/runs.json: seed: found \"1\" (string), expected an integer"},
      {R"({"device": "gpu"})", "here/runs.json: device: unknown device 'gpu'"},
      {R"({"device": "cuda:x"})", "expected auto, cpu, cuda or cuda:<n>"},
      {R"({"kernel": "sm8"})",
       "here/runs.json: kernel: unknown kernel 'sm8', did you mean 'sm80'?; expected one of auto, "
       "ref, sm80, sm90"},
      {R"({"dtype": "bfloat16"})", "here/runs.json: dtype: unknown value 'bfloat16'"},
      {R"({"inputs": []})", "here/runs.json: inputs: empty list"},
      {R"({"inputs": null})", "here/runs.json: key 'inputs' is missing"},
      {R"({"inputs": [{"pattern": "x"}]})", "here/runs.json: inputs[0]: key 'source' is missing"},
      {R"({"methods": {"name": "s2o"}})", "here/runs.json: methods: found"},
      {R"({"methods": ["s2o"]})", "here/runs.json: methods[0]: found \"s2o\" (string)"},
      {R"({"methods": [{"name": 3}]})", "here/runs.json: methods[0].name: found 3"},
      {R"({"timing": {"repeat": 3}})",
       "here/runs.json: timing.repeat: unknown key, did you mean 'repeats'?"},
      {R"({"timing": {"repeats": 0}})", "here/runs.json: timing.repeats: found 0"},
      {R"({"save_outputs": 1})", "here/runs.json: save_outputs: found 1 (number)"},
      {R"({"name": "a/b"})", "expected a name that can be a folder"},
      {R"({"name": ".."})", "expected a name that can be a folder"},
  };
  for (const Case& test : cases) {
    Json document = small_config();
    document.merge_patch(Json::parse(test.change));
    const auto message = message_of<ConfigError>([&] { parse(document); });
    EXPECT_THAT(message, HasSubstr(test.expected)) << test.change;
  }
}

TEST(run_config, device_texts_round_trip) {
  for (const char* text : {"auto", "cpu", "cuda:0", "cuda:3"}) {
    EXPECT_EQ(device_text(parse_device(text, "")), text);
  }
  EXPECT_EQ(device_text(parse_device("cuda", "")), "cuda:0");
}

TEST(run_config, kernels_have_a_short_and_a_full_name) {
  EXPECT_EQ(parse_kernel("sm90", ""), "sm90");
  EXPECT_EQ(parse_kernel("attention_ref", ""), "ref");
  EXPECT_EQ(parse_kernel("auto", ""), "auto");
}

TEST(run_config, method_path_is_the_name_where_it_is_unique) {
  const RunConfig config = parse(small_config());
  EXPECT_EQ(method_path(config, 0), "here/runs.json: methods.dense");
  EXPECT_EQ(method_path(config, 2), "here/runs.json: methods[2]");
}

TEST(apply_set, values_are_json_else_lists_else_strings) {
  EXPECT_EQ(with_set("seed=3")["seed"], 3);
  EXPECT_EQ(with_set("dtype=fp32")["dtype"], "fp32");
  EXPECT_EQ(with_set("save_outputs=true")["save_outputs"], true);
  EXPECT_EQ(with_set("name=a=b")["name"], "a=b");
  EXPECT_EQ(with_set("inputs.0.seqlen=4096,8192")["inputs"][0]["seqlen"], Json({4096, 8192}));
  EXPECT_EQ(with_set("inputs.0.seqlen=[4096, 8192]")["inputs"][0]["seqlen"], Json({4096, 8192}));
  EXPECT_EQ(with_set("inputs.0.pattern=sinks,needles")["inputs"][0]["pattern"],
            Json({"sinks", "needles"}));
  EXPECT_EQ(with_set("inputs.1.path=\"a,b\"")["inputs"][1]["path"], "a,b");
}

TEST(apply_set, method_name_means_every_entry_and_a_number_one) {
  const Json by_name = with_set("methods.s2o.tau=0.01,0.02");
  EXPECT_EQ(by_name["methods"][1]["tau"], Json({0.01, 0.02}));
  EXPECT_EQ(by_name["methods"][2]["tau"], Json({0.01, 0.02}));
  EXPECT_FALSE(by_name["methods"][0].contains("tau"));
  const Json by_number = with_set("methods.2.tau=0.5");
  EXPECT_EQ(by_number["methods"][1]["tau"], 0.1);
  EXPECT_EQ(by_number["methods"][2]["tau"], 0.5);
}

TEST(apply_set, missing_objects_on_the_way_are_made) {
  EXPECT_EQ(with_set("timing.repeats=5")["timing"]["repeats"], 5);
  EXPECT_EQ(with_set("inputs.1.tensors.q=query")["inputs"][1]["tensors"]["q"], "query");
}

TEST(apply_set, unknown_paths_name_the_nearest) {
  EXPECT_THAT(set_error("sed=1"),
              AllOf(HasSubstr("--set sed=1"), HasSubstr("did you mean 'seed'")));
  EXPECT_THAT(set_error("timing.repeat=1"), HasSubstr("did you mean 'repeats'"));
  EXPECT_THAT(set_error("methods.s2.tau=1"),
              AllOf(HasSubstr("no method 's2'"), HasSubstr("did you mean 's2o'")));
  EXPECT_THAT(set_error("inputs.2.seqlen=1"), HasSubstr("the config has 2 inputs"));
  EXPECT_THAT(set_error("inputs.dump.path=x"), HasSubstr("expected the number of an input"));
  EXPECT_THAT(set_error("seed.x=1"), HasSubstr("'seed' is a single value"));
  EXPECT_THAT(set_error("methods.s2o=1"), HasSubstr("expected methods.s2o.<key>=value"));
}

TEST(apply_set, malformed_assignments_are_refused) {
  for (const char* assignment : {"seed", "=3", "seed=", "methods..tau=1", "seed=1,,2"}) {
    EXPECT_THAT(set_error(assignment), HasSubstr(std::string("--set ") + assignment));
  }
}

TEST(find_config, missing_name_lists_what_was_tried_and_the_nearest) {
  const auto message = message_of<ConfigError>([] { find_config("quickstrat"); });
  EXPECT_THAT(message, AllOf(HasSubstr("no config 'quickstrat', did you mean 'quickstart'?"),
                             HasSubstr("tried: quickstrat, configs/quickstrat.json, ")));
}

TEST(find_config, file_is_taken_as_given_and_names_are_found_in_the_source_tree) {
  const TempFolder folder;
  write_file(folder / "mine.json", "{}");
  EXPECT_EQ(find_config((folder / "mine.json").string()), folder / "mine.json");
  EXPECT_EQ(find_config("quickstart").filename(), "quickstart.json");
}

TEST(load_run_config, sets_apply_in_order_and_broken_json_names_its_line) {
  const TempFolder folder;
  write_file(folder / "a.json", small_config().dump());
  const auto file = (folder / "a.json").string();
  EXPECT_EQ(load_run_config(file, {"seed=1", "seed=2"}).seed, 2u);
  write_file(folder / "b.json", "{\n \"seed\": 1,\n \"name\" \"x\"\n}");
  const auto message =
      message_of<ConfigError>([&] { load_run_config((folder / "b.json").string(), {}); });
  EXPECT_THAT(message, AllOf(HasSubstr("b.json: "), HasSubstr("line 3"), HasSubstr("column")));
}

}  // namespace
}  // namespace s2o
