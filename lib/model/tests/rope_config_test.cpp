#include "lib/model/rope_config.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <map>
#include <string>
#include <vector>

#include "lib/core/error.h"
#include "lib/core/log.h"
#include "lib/model/rope.h"
#include "lib/testing/files.h"

namespace s2o {
namespace {

using nlohmann::json;
using ::testing::AllOf;
using ::testing::HasSubstr;

RopeConfig read(const std::string& text, std::int64_t max_positions) {
  const json root = json::parse(text);
  return read_rope_config(ConfigFields(root, "config.json: "), max_positions);
}

// What modeling_rope_utils.py of transformers 5.17 computes.
struct Published {
  std::string name;
  std::string config;
  std::int64_t max_positions;
  int head_dim;
  std::int64_t seqlen;
  float scale;
  std::map<int, double> inverse;  // by pair
};

const std::vector<Published>& published() {
  static const std::vector<Published> kCases = {
      {"llama_3_1_8b",
       R"({"rope_theta": 500000.0, "rope_scaling": {"rope_type": "llama3", "factor": 8.0,
           "low_freq_factor": 1.0, "high_freq_factor": 4.0,
           "original_max_position_embeddings": 8192}})",
       131072,
       128,
       1,
       1.0f,
       {{0, 1.0},
        {1, 0.8146172165870667},
        {16, 0.03760603070259094},
        {28, 0.0032114461064338684},
        {29, 0.0021665706299245358},
        {30, 0.0013718936825171113},
        {32, 0.0005248460220173001},
        {34, 0.0001785077911335975},
        {35, 9.556212171446532e-05},
        {36, 7.784655463183299e-05},
        {48, 6.647869668086059e-06},
        {63, 3.068925877869333e-07}}},
      {"qwen2_5_with_yarn",
       R"({"rope_theta": 1000000.0, "rope_scaling": {"type": "yarn", "factor": 4.0,
           "original_max_position_embeddings": 32768}})",
       32768,
       128,
       1,
       1.138629436111989f,
       {{0, 1.0},
        {1, 0.8058422207832336},
        {16, 0.03162277862429619},
        {20, 0.01333521492779255},
        {24, 0.005375321488827467},
        {30, 0.001064361073076725},
        {32, 0.0006029411451891065},
        {48, 7.905693564680405e-06},
        {63, 3.102344408034696e-07}}},
      {"yarn_with_every_key",
       R"({"rope_parameters": {"rope_type": "yarn", "factor": 40.0, "rope_theta": 10000.0,
           "original_max_position_embeddings": 4096, "beta_fast": 24, "beta_slow": 2,
           "truncate": false, "mscale": 1.0, "mscale_all_dim": 0.707}})",
       163840,
       64,
       1,
       1.0857263992561355f,
       {{0, 1.0},
        {1, 0.7498942017555237},
        {10, 0.05623412877321243},
        {16, 0.004886118695139885},
        {20, 0.00011662647011689842},
        {24, 2.499999936844688e-05},
        {31, 3.3338035336782923e-06}}},
      {"linear",
       R"({"rope_theta": 10000.0, "rope_scaling": {"type": "linear", "factor": 4.0}})",
       4096,
       64,
       1,
       1.0f,
       {{0, 0.25},
        {1, 0.18747355043888092},
        {16, 0.0024999999441206455},
        {31, 3.333803761051968e-05}}},
      {"dynamic_beyond_the_trained_length",
       R"({"rope_theta": 10000.0, "rope_scaling": {"type": "dynamic", "factor": 2.0}})",
       4096,
       64,
       12000,
       1.0f,
       {{0, 1.0},
        {1, 0.7126105427742004},
        {4, 0.25787484645843506},
        {16, 0.004422174766659737},
        {24, 0.00029407214606180787},
        {31, 2.7442241844255477e-05}}},
      {"dynamic_within_the_trained_length",
       R"({"rope_theta": 10000.0, "rope_scaling": {"type": "dynamic", "factor": 2.0}})",
       4096,
       64,
       4096,
       1.0f,
       {{0, 1.0}, {16, 0.009999999776482582}}},
  };
  return kCases;
}

TEST(RopeFrequencies, published_parameters_equal_transformers) {
  for (const Published& it : published()) {
    SCOPED_TRACE(it.name);
    const RopeFrequencies found =
        rope_frequencies(read(it.config, it.max_positions), it.head_dim, it.seqlen);
    ASSERT_EQ(found.inverse.size(), static_cast<std::size_t>(it.head_dim / 2));
    EXPECT_FLOAT_EQ(found.scale, it.scale);
    for (const auto& [pair, value] : it.inverse) {
      EXPECT_NEAR(found.inverse[static_cast<std::size_t>(pair)] / value, 1.0, 1e-6) << pair;
    }
  }
}

TEST(RopeTable, cosines_and_sines_are_scaled) {
  const RopeTable table({.inverse = {1.0f}, .scale = 1.25f}, 3);
  float row[2] = {1.0f, 0.0f};
  table.rotate(row, 2);
  EXPECT_FLOAT_EQ(row[0], 1.25f * std::cos(2.0f));
  EXPECT_FLOAT_EQ(row[1], 1.25f * std::sin(2.0f));
}

TEST(RopeConfig, attention_factor_given_counts_before_mscale) {
  const RopeConfig rope = read(R"({"rope_theta": 1e6, "rope_scaling": {"rope_type": "yarn",
      "factor": 4.0, "original_max_position_embeddings": 32, "attention_factor": 1.5,
      "mscale": 2.0, "mscale_all_dim": 1.0}})",
                               128);
  EXPECT_FLOAT_EQ(rope.attention_factor, 1.5f);
}

TEST(RopeConfig, yarn_factor_null_is_the_ratio_of_lengths) {
  const RopeConfig rope = read(R"({"rope_theta": 1e6, "rope_scaling": {"rope_type": "yarn",
      "factor": null, "original_max_position_embeddings": 32}})",
                               128);
  EXPECT_FLOAT_EQ(rope.factor, 4.0f);
}

TEST(RopeConfig, keys_that_agree_may_both_stand_there) {
  const RopeConfig rope = read(R"({
      "rope_scaling": {"type": "linear", "factor": 4.0},
      "rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 500000.0}})",
                               128);
  EXPECT_EQ(rope.type, RopeType::kLinear);
  EXPECT_FLOAT_EQ(rope.theta, 500000.0f);
}

TEST(RopeConfig, theta_inside_counts_before_the_one_outside) {
  EXPECT_FLOAT_EQ(read(R"({"rope_theta": 7.0, "rope_parameters": {"rope_theta": 500.0}})", 0).theta,
                  500.0f);
  EXPECT_FLOAT_EQ(read(R"({"rope_theta": 7.0, "rope_parameters": {}})", 0).theta, 7.0f);
  EXPECT_FLOAT_EQ(
      read(R"({"rope_theta": 7.0, "rope_scaling": {"type": "linear", "factor": 2}})", 0).theta,
      7.0f);
}

TEST(RopeConfig, original_length_beside_rope_scaling_counts_first) {
  const RopeConfig rope = read(R"({"rope_theta": 1e6, "original_max_position_embeddings": 64,
      "rope_scaling": {"rope_type": "yarn", "factor": 4.0,
                       "original_max_position_embeddings": 32}})",
                               128);
  EXPECT_EQ(rope.original_max_position_embeddings, 64);
}

// What is taken by default, or not taken, is said.
TEST(RopeConfig, silent_defaults_do_not_exist) {
  const auto warnings = [](const std::string& config) {
    ::testing::internal::CaptureStderr();
    read(config, 128);
    return ::testing::internal::GetCapturedStderr();
  };
  EXPECT_THAT(warnings(R"({"rope_scaling": {"type": "linear", "factor": 4.0}})"),
              AllOf(HasSubstr("config.json: rope_theta: missing"), HasSubstr("10000 is used")));
  EXPECT_THAT(warnings(R"({"rope_theta": 7.0, "rope_parameters": {"rope_theta": 500.0}})"),
              AllOf(HasSubstr("rope_theta: found 7"), HasSubstr("rope_parameters.rope_theta"),
                    HasSubstr("500")));
  EXPECT_THAT(warnings(R"({"rope_theta": 7.0, "rope_scaling": {"type": "linear", "factor": 4.0,
                           "betafast": 3}})"),
              AllOf(HasSubstr("rope_scaling.betafast"), HasSubstr("ignored")));
  EXPECT_THAT(warnings(R"({"rope_scaling": {"type": "linear", "factor": 4.0},
                           "rope_parameters": {"type": "linear", "factor": 4.0,
                                               "rope_theta": 500.0}})"),
              AllOf(HasSubstr("rope_parameters.rope_theta: found 500"), HasSubstr("used")));
  EXPECT_EQ(warnings(R"({"rope_theta": 7.0, "rope_scaling": {"type": "linear", "factor": 4}})"),
            "");
}

}  // namespace
}  // namespace s2o
