#include "lib/model/model_config.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>
#include <string>
#include <vector>

#include "lib/core/error.h"
#include "lib/model/tests/model_folder.h"

namespace s2o {
namespace {

using nlohmann::json;
using testing::HasSubstr;
using testing_support::ConfigEdit;
using testing_support::copy_model;
using testing_support::data_folder;
using testing_support::edit_config;
using testing_support::fixture_model;
using testing_support::message_of;
using testing_support::TempFolder;
using testing_support::write_file;

ModelConfig read_edited(const std::string& fixture, const ConfigEdit& edit) {
  const TempFolder folder;
  copy_model(fixture, folder.path());
  edit_config(folder.path(), edit);
  return read_model_config(folder.path());
}

TEST(ModelConfig, read_shipped_model_has_documented_sizes) {
  const ModelConfig config = read_model_config(data_folder() / "tiny-llama");
  EXPECT_EQ(config.name, "tiny-llama");
  EXPECT_EQ(config.architecture, "LlamaForCausalLM");
  EXPECT_EQ(config.num_layers, 4);
  EXPECT_EQ(config.hidden_size, 256);
  EXPECT_EQ(config.intermediate_size, 704);
  EXPECT_EQ(config.num_q_heads, 8);
  EXPECT_EQ(config.num_kv_heads, 2);
  EXPECT_EQ(config.head_dim, 128);
  EXPECT_EQ(config.vocab_size, 4096);
  EXPECT_EQ(config.max_position_embeddings, 32768);
  EXPECT_FLOAT_EQ(config.rms_norm_eps, 1e-5f);
  EXPECT_FLOAT_EQ(config.rope.theta, 500000.0f);
  EXPECT_EQ(config.rope.type, RopeType::kDefault);
  EXPECT_TRUE(config.tie_word_embeddings);
  EXPECT_FALSE(config.qk_norm);
}

TEST(ModelConfig, read_trailing_slash_keeps_name) {
  EXPECT_EQ(read_model_config(data_folder() / "tiny-llama/").name, "tiny-llama");
}

TEST(ModelConfig, read_without_optional_fields_uses_defaults) {
  const ModelConfig config = read_edited("llama_tied", [](json& c) {
    for (const char* key : {"head_dim", "num_key_value_heads", "rope_parameters", "hidden_act",
                            "rms_norm_eps", "tie_word_embeddings", "max_position_embeddings"}) {
      c.erase(key);
    }
  });
  EXPECT_EQ(config.head_dim, 8);
  EXPECT_EQ(config.num_kv_heads, 4);
  EXPECT_FLOAT_EQ(config.rope.theta, 10000.0f);
  EXPECT_FLOAT_EQ(config.rms_norm_eps, 1e-6f);
  EXPECT_FALSE(config.tie_word_embeddings);
  EXPECT_EQ(config.max_position_embeddings, 0);
}

TEST(ModelConfig, read_rope_spellings_agree) {
  const json llama3 = {{"rope_type", "llama3"},
                       {"factor", 8.0},
                       {"low_freq_factor", 1.0},
                       {"high_freq_factor", 4.0},
                       {"original_max_position_embeddings", 8192}};
  const auto with = [&](const char* key, bool old_type_key, bool theta_inside) {
    return read_edited("llama_untied", [&](json& c) {
      c.erase("rope_parameters");
      json rope = llama3;
      if (old_type_key) {
        rope.erase("rope_type");
        rope["type"] = "llama3";
      }
      (theta_inside ? rope : c)["rope_theta"] = 500000.0;
      c[key] = rope;
    });
  };
  for (const ModelConfig& config :
       {with("rope_scaling", false, false), with("rope_scaling", true, false),
        with("rope_parameters", false, true), with("rope_parameters", true, true)}) {
    EXPECT_EQ(config.rope.type, RopeType::kLlama3);
    EXPECT_FLOAT_EQ(config.rope.theta, 500000.0f);
    EXPECT_FLOAT_EQ(config.rope.factor, 8.0f);
    EXPECT_FLOAT_EQ(config.rope.low_freq_factor, 1.0f);
    EXPECT_FLOAT_EQ(config.rope.high_freq_factor, 4.0f);
    EXPECT_EQ(config.rope.original_max_position_embeddings, 8192);
  }
}

TEST(ModelConfig, read_qwen3_unused_sliding_window_is_accepted) {
  const ModelConfig off = read_edited("qwen3", [](json& c) {
    c["sliding_window"] = 4096;
    c["use_sliding_window"] = false;
  });
  EXPECT_TRUE(off.qk_norm);
  EXPECT_NO_THROW(read_edited("qwen3", [](json& c) {
    c["sliding_window"] = 4096;
    c["use_sliding_window"] = true;
    c["max_window_layers"] = 3;
  }));
}

// The frequencies that transformers 5.23.0 computes for Llama-3.1-8B.
TEST(RopeInverseFrequencies, llama3_published_parameters_equal_transformers) {
  ModelConfig config;
  config.head_dim = 128;
  config.rope = {.type = RopeType::kLlama3,
                 .theta = 500000.0f,
                 .factor = 8.0f,
                 .low_freq_factor = 1.0f,
                 .high_freq_factor = 4.0f,
                 .original_max_position_embeddings = 8192};
  const std::vector<float> found = rope_inverse_frequencies(config);
  ASSERT_EQ(found.size(), 64u);
  const std::map<int, double> expected = {
      {0, 1.0},
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
      {63, 3.068925877869333e-07},
  };
  for (const auto& [index, value] : expected) {
    EXPECT_NEAR(found[index] / value, 1.0, 1e-6) << "pair " << index;
  }
}

struct BadConfig {
  std::string name;
  std::string fixture;
  ConfigEdit edit;
  std::vector<std::string> message;  // parts
};

template <class Error>
void expect_refused(const BadConfig& bad) {
  SCOPED_TRACE(bad.name);
  const std::string message = message_of<Error>([&] { read_edited(bad.fixture, bad.edit); });
  for (const std::string& part : bad.message) EXPECT_THAT(message, HasSubstr(part));
}

TEST(ModelConfig, read_malformed_field_names_file_field_and_value) {
  const auto set = [](const char* key, json value) {
    return [key, value](json& c) { c[key] = value; };
  };
  const auto set_rope = [](const char* key, json value) {
    return [key, value](json& c) { c["rope_scaling"][key] = value; };
  };
  const auto erase = [](const char* key) { return [key](json& c) { c.erase(key); }; };
  const std::vector<BadConfig> cases = {
      {"hidden_missing", "qwen3", erase("hidden_size"), {"config.json: hidden_size", "missing"}},
      {"hidden_null", "qwen3", set("hidden_size", nullptr), {"hidden_size", "missing"}},
      {"hidden_zero", "qwen3", set("hidden_size", 0), {"hidden_size", "found 0", "[1, 16777216]"}},
      {"hidden_text", "qwen3", set("hidden_size", "32"), {"hidden_size", "found \"32\""}},
      {"hidden_real", "qwen3", set("hidden_size", 32.5), {"hidden_size", "32.5", "integer"}},
      {"hidden_huge", "qwen3", set("hidden_size", 1e18), {"hidden_size"}},
      {"layers_negative", "qwen3", set("num_hidden_layers", -3), {"num_hidden_layers", "-3"}},
      {"layers_many", "qwen3", set("num_hidden_layers", 70000), {"num_hidden_layers", "65536"}},
      {"vocab_bool", "qwen3", set("vocab_size", true), {"vocab_size", "true"}},
      {"intermediate", "qwen3", set("intermediate_size", -1), {"intermediate_size", "-1"}},
      {"heads_zero", "qwen3", set("num_attention_heads", 0), {"num_attention_heads", "0"}},
      {"heads_not_divisible",
       "qwen3",
       set("num_key_value_heads", 3),
       {"num_key_value_heads", "found 3", "divisor of num_attention_heads 8"}},
      {"head_dim_odd", "qwen3", set("head_dim", 17), {"head_dim", "17", "even"}},
      {"head_dim_not_derivable",
       "llama_tied",
       set("hidden_size", 33),
       {"num_attention_heads", "divisor of hidden_size 33"}},
      {"eps_negative", "qwen3", set("rms_norm_eps", -1e-5), {"rms_norm_eps", "> 0"}},
      {"eps_text", "qwen3", set("rms_norm_eps", "small"), {"rms_norm_eps", "\"small\""}},
      {"tie_text", "qwen3", set("tie_word_embeddings", "yes"), {"tie_word_embeddings", "true or"}},
      {"theta_zero", "llama3_rope", set("rope_theta", 0), {"rope_theta", "> 0"}},
      {"rope_no_object", "llama3_rope", set("rope_scaling", 4.0), {"rope_scaling", "an object"}},
      {"factor_missing",
       "llama3_rope",
       [](json& c) { c["rope_scaling"].erase("factor"); },
       {"rope_scaling.factor", "missing"}},
      {"factor_text", "llama3_rope", set_rope("factor", "4"), {"rope_scaling.factor", "\"4\""}},
      {"frequency_factors",
       "llama3_rope",
       set_rope("low_freq_factor", 4.0),
       {"rope_scaling.high_freq_factor", "more than low_freq_factor 4"}},
      {"original_positions",
       "llama3_rope",
       set_rope("original_max_position_embeddings", 0),
       {"rope_scaling.original_max_position_embeddings", "found 0"}},
      {"architectures_missing", "qwen3", erase("architectures"), {"architectures", "missing"}},
      {"architectures_two",
       "qwen3",
       set("architectures", json::array({"A", "B"})),
       {"architectures", "list of one name"}},
      {"sliding_window_text",
       "qwen3",
       [](json& c) {
         c["use_sliding_window"] = true;
         c["sliding_window"] = "wide";
       },
       {"sliding_window", "\"wide\""}},
  };
  for (const BadConfig& bad : cases) expect_refused<InputError>(bad);
}

TEST(ModelConfig, read_unsupported_feature_lists_what_is_supported) {
  const auto set = [](const char* key, json value) {
    return [key, value](json& c) { c[key] = value; };
  };
  const std::vector<BadConfig> cases = {
      {"architecture",
       "qwen3",
       set("architectures", json::array({"MistralForCausalLM"})),
       {"architectures", "'MistralForCausalLM'", "LlamaForCausalLM, Qwen3ForCausalLM"}},
      {"rope_type",
       "llama3_rope",
       [](json& c) { c["rope_scaling"]["rope_type"] = "yarn"; },
       {"rope_scaling.rope_type", "'yarn'", "default, llama3"}},
      {"old_rope_type",
       "llama3_rope",
       [](json& c) {
         c["rope_scaling"].erase("rope_type");
         c["rope_scaling"]["type"] = "linear";
       },
       {"rope_scaling.type", "'linear'", "default, llama3"}},
      {"rope_per_layer_type",
       "qwen3",
       set("rope_parameters", {{"full_attention", {{"rope_type", "default"}}}}),
       {"rope_parameters.full_attention"}},
      {"partial_rotary",
       "llama3_rope",
       set("partial_rotary_factor", 0.5),
       {"partial_rotary_factor", "0.5"}},
      {"activation", "qwen3", set("hidden_act", "gelu"), {"hidden_act", "'gelu'", "silu"}},
      {"quantised",
       "qwen3",
       set("quantization_config", {{"quant_method", "gptq"}}),
       {"quantization_config", "F32, F16 and BF16"}},
      {"window_llama", "llama_tied", set("sliding_window", 4096), {"sliding_window", "4096"}},
      {"window_qwen3",
       "qwen3",
       [](json& c) {
         c["sliding_window"] = 4096;
         c["use_sliding_window"] = true;
         c["max_window_layers"] = 2;
       },
       {"sliding_window", "4096"}},
      {"layer_types",
       "qwen3",
       set("layer_types", json::array({"full_attention", "sliding_attention", "full_attention"})),
       {"layer_types", "sliding_attention"}},
  };
  for (const BadConfig& bad : cases) expect_refused<UnsupportedError>(bad);
}

TEST(ModelConfig, read_folder_or_file_missing_is_named) {
  const TempFolder folder;
  EXPECT_THAT(message_of<InputError>([&] { read_model_config(folder / "nowhere"); }),
              HasSubstr("nowhere: no such folder"));
  EXPECT_THAT(message_of<InputError>([&] { read_model_config(folder.path()); }),
              HasSubstr("config.json"));
  EXPECT_THAT(
      message_of<InputError>([&] { read_model_config(data_folder() / "tiny-llama/config.json"); }),
      HasSubstr("no such folder"));
}

TEST(ModelConfig, read_broken_json_names_place) {
  const TempFolder folder;
  for (const char* text : {"{\"hidden_size\": 1,", "[1, 2]", "", "\x00\x01", "{\"a\":1,\"a\":2}"}) {
    write_file(folder / "config.json", text);
    EXPECT_THAT(message_of<InputError>([&] { read_model_config(folder.path()); }),
                HasSubstr("config.json"))
        << text;
  }
}

}  // namespace
}  // namespace s2o
