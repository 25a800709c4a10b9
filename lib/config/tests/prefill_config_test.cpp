#include "lib/config/prefill_config.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "lib/core/error.h"
#include "lib/testing/files.h"

namespace s2o {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using testing_support::message_of;
using testing_support::TempFolder;
using testing_support::write_file;
using Json = nlohmann::ordered_json;

class PrefillConfigTest : public ::testing::Test {
 protected:
  void SetUp() override {
    write_file(folder_ / "run.json", R"({"model": {"shape": "tiny-llama"},
        "prompts": [{"random": true, "seqlen": 64}],
        "methods": [{"name": "dense"}, {"name": "s2o", "tau": 0.1}]})");
  }
  PrefillConfig load(const std::vector<std::string>& sets) const {
    return load_prefill_config((folder_ / "run.json").string(), sets);
  }
  std::string refusal(const std::string& set) const {
    return message_of<ConfigError>([&] { load({set}); });
  }

  TempFolder folder_;
};

TEST_F(PrefillConfigTest, defaults_are_filled_in) {
  const PrefillConfig config = load({});
  EXPECT_EQ(config.name, "run");
  EXPECT_EQ(config.logit_positions, 1024);
  EXPECT_EQ(config.timing.repeats, 5);
  EXPECT_TRUE(config.replay.is_null());
  EXPECT_TRUE(config.dense_layers.empty());
  EXPECT_EQ(to_json(config)["prompts"][0]["seqlen"], 64);
  EXPECT_FALSE(to_json(config).contains("check_rows"));
  EXPECT_EQ(to_json(load({"check_rows=4"}))["check_rows"], 4);
}

TEST_F(PrefillConfigTest, set_reaches_every_part) {
  const PrefillConfig config =
      load({"model.seed=3", "prompts.0.seqlen=8,16", "methods.s2o.tau=0.2,0.3", "dense_layers=0,1",
            "methods.s2o.layers.3.tau=0.5", "timing.repeats=2", "replay=capture.safetensors"});
  EXPECT_EQ(config.model["seed"], 3);
  EXPECT_EQ(config.prompts[0]["seqlen"], Json({8, 16}));
  EXPECT_EQ(config.methods[1]["tau"], Json({0.2, 0.3}));
  EXPECT_EQ(config.methods[1]["layers"]["3"]["tau"], 0.5);
  EXPECT_THAT(config.dense_layers, ElementsAre(0, 1));
  EXPECT_EQ(config.timing.repeats, 2);
  EXPECT_EQ(config.replay["source"], "dump");
  EXPECT_THAT(load({"dense_layers=2"}).dense_layers, ElementsAre(2));
  EXPECT_TRUE(load({"dense_layers=[]"}).dense_layers.empty());
}

TEST_F(PrefillConfigTest, refusals_name_the_place) {
  EXPECT_THAT(refusal("inputs.0.seqlen=4"), HasSubstr("unknown key 'inputs'; known keys:"));
  EXPECT_THAT(refusal("model.sede=4"), HasSubstr("unknown key 'sede', did you mean 'seed'?"));
  EXPECT_THAT(refusal("prompts.1.seqlen=4"), HasSubstr("the config has 1 prompts"));
  EXPECT_THAT(refusal("prompts.random.seqlen=4"), HasSubstr("expected the number of an entry"));
  EXPECT_THAT(refusal("methods.xattention.stride=4"), HasSubstr("it has: dense, s2o"));
  EXPECT_THAT(refusal("prompts=[3]"), HasSubstr("prompts[0]: found 3"));
  EXPECT_THAT(refusal("model=null"), HasSubstr("a model directory"));
  EXPECT_THAT(refusal("dense_layers=first"), HasSubstr("an integer"));
  EXPECT_THAT(refusal("logit_positions=5000"), HasSubstr("between 0 and 4096"));
}

}  // namespace
}  // namespace s2o
