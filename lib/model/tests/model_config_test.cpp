#include "lib/model/model_config.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

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

TEST(ModelConfig, rope_that_fp32_does_not_hold_is_named) {
  for (const double factor : {1e-40, 1e38}) {
    const std::string message = message_of<InputError>([factor] {
      read_edited("llama_tied", [factor](json& c) {
        c.erase("rope_parameters");
        c["rope_theta"] = 1e4;
        c["rope_scaling"] = {{"rope_type", "linear"}, {"factor", factor}};
      });
    });
    EXPECT_THAT(message, HasSubstr("config.json: rope type linear, theta 10000 and factor"));
  }
}

TEST(ModelConfig, gguf_file_is_told_how_it_becomes_a_folder) {
  const TempFolder folder;
  write_file(folder.path() / "model.gguf", "GGUF");
  EXPECT_THAT(
      message_of<InputError>([&folder] { read_model_config(folder.path() / "model.gguf"); }),
      HasSubstr("model.gguf: a file, expected a model directory with config.json; scripts/"
                "gguf_to_hf.py"));
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

// A Qwen2 or Mistral config without weights behind it.
ModelConfig read_as(const char* architecture, const ConfigEdit& edit) {
  return read_edited("llama_untied", [&](json& c) {
    c["architectures"] = {architecture};
    edit(c);
  });
}

TEST(ModelConfig, read_biases_are_those_of_the_architecture) {
  const ConfigEdit nothing = [](json&) {};
  const ModelConfig llama = read_as("LlamaForCausalLM", nothing);  // attention_bias, mlp_bias: true
  EXPECT_TRUE(llama.qkv_bias && llama.output_bias && llama.mlp_bias);
  const ModelConfig qwen2 = read_as("Qwen2ForCausalLM", nothing);
  EXPECT_TRUE(qwen2.qkv_bias);
  EXPECT_FALSE(qwen2.output_bias || qwen2.mlp_bias || qwen2.qk_norm);
  const ModelConfig mistral =
      read_as("MistralForCausalLM", [](json& c) { c["sliding_window"] = nullptr; });
  EXPECT_FALSE(mistral.qkv_bias || mistral.output_bias || mistral.mlp_bias);
  const ModelConfig qwen3 = read_as("Qwen3ForCausalLM", nothing);
  EXPECT_TRUE(qwen3.qkv_bias && qwen3.output_bias && qwen3.qk_norm);
  EXPECT_FALSE(qwen3.mlp_bias);
}

TEST(ModelConfig, read_kv_heads_default_to_those_of_the_architecture) {
  const auto heads = [](const char* architecture, int num_q_heads, bool null) {
    return read_as(architecture,
                   [&](json& c) {
                     c["num_attention_heads"] = num_q_heads;
                     c.erase("num_key_value_heads");
                     if (null) c["num_key_value_heads"] = nullptr;
                   })
        .num_kv_heads;
  };
  EXPECT_EQ(heads("LlamaForCausalLM", 64, false), 64);
  EXPECT_EQ(heads("MistralForCausalLM", 64, false), 8);
  EXPECT_EQ(heads("Qwen2ForCausalLM", 64, false), 32);
  EXPECT_EQ(heads("Qwen3ForCausalLM", 64, true), 64);
}

// What transformers 5 makes of these keys, for 3 layers.
TEST(ModelConfig, read_sliding_window_counts_where_transformers_uses_it) {
  const auto window = [](const char* architecture, const char* keys) {
    return read_as(architecture, [&](json& c) { c.update(json::parse(keys)); }).sliding_window;
  };
  for (const char* qwen : {"Qwen2ForCausalLM", "Qwen3ForCausalLM"}) {
    EXPECT_EQ(window(qwen, "{}"), 0);
    EXPECT_EQ(window(qwen, R"({"sliding_window": 64})"), 0);
    EXPECT_EQ(window(qwen, R"({"sliding_window": 64, "use_sliding_window": false})"), 0);
    EXPECT_EQ(window(qwen, R"({"sliding_window": null, "use_sliding_window": true})"), 0);
    EXPECT_EQ(window(qwen, R"({"sliding_window": 64, "use_sliding_window": true})"), 0)
        << "the first window layer is 28 by default";
    EXPECT_EQ(window(qwen, R"({"sliding_window": 64, "use_sliding_window": true,
                               "max_window_layers": 3})"),
              0);
    EXPECT_EQ(window(qwen, R"({"sliding_window": 64, "use_sliding_window": true,
                               "max_window_layers": 2})"),
              64);
    EXPECT_EQ(window(qwen, R"({"use_sliding_window": true, "max_window_layers": 0})"), 4096);
    EXPECT_EQ(window(qwen, R"({"sliding_window": 64, "use_sliding_window": true,
                               "max_window_layers": 0, "layer_types":
                               ["full_attention", "full_attention", "full_attention"]})"),
              0);
    EXPECT_EQ(window(qwen, R"({"sliding_window": 64, "use_sliding_window": true, "layer_types":
                               ["full_attention", "sliding_attention", "full_attention"]})"),
              64);
  }
  EXPECT_EQ(window("MistralForCausalLM", R"({"sliding_window": null})"), 0);
  EXPECT_EQ(window("MistralForCausalLM", R"({"sliding_window": 64})"), 64);
  EXPECT_EQ(window("MistralForCausalLM", "{}"), 4096);
  EXPECT_EQ(window("LlamaForCausalLM", R"({"sliding_window": 64})"), 0);
}

TEST(ModelConfig, prompt_longer_than_a_sliding_window_is_refused) {
  const ModelConfig config =
      read_as("MistralForCausalLM", [](json& c) { c["sliding_window"] = 64; });
  EXPECT_NO_THROW(check_prompt_length(config, 64, "prompt"));
  EXPECT_THAT(message_of<UnsupportedError>([&] { check_prompt_length(config, 65, "prompt"); }),
              testing::AllOf(HasSubstr("prompt: 65 tokens"), HasSubstr("sliding_window of 64"),
                             HasSubstr("up to 64 tokens")));
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
      {"rope_without_type",
       "llama3_rope",
       set("rope_scaling", {{"factor", 4.0}}),
       {"rope_scaling.rope_type", "missing", "default, linear, dynamic, yarn, llama3", "factor"}},
      {"rope_keys_differ",
       "llama3_rope",
       [](json& c) {
         c["rope_parameters"] = c["rope_scaling"];
         c["rope_parameters"]["factor"] = 8.0;
       },
       {"rope_scaling", "factor is 4.0 here and 8.0 in rope_parameters"}},
      {"rope_thetas_differ",
       "llama3_rope",
       [](json& c) {
         c["rope_scaling"]["rope_theta"] = 10000;
         c["rope_parameters"] = c["rope_scaling"];
         c["rope_parameters"]["rope_theta"] = 500000;
       },
       {"rope_scaling.rope_theta: found 10000", "rope_parameters.rope_theta says 500000"}},
      {"yarn_without_original",
       "llama3_rope",
       set("rope_scaling", {{"rope_type", "yarn"}, {"factor", 4.0}}),
       {"rope_scaling.original_max_position_embeddings", "missing", "before YaRN"}},
      {"yarn_without_factor",
       "llama3_rope",
       set("rope_scaling", {{"rope_type", "yarn"}, {"original_max_position_embeddings", 32}}),
       {"rope_scaling.factor", "missing"}},
      {"yarn_betas",
       "llama3_rope",
       set("rope_scaling", {{"rope_type", "yarn"},
                            {"factor", 4.0},
                            {"beta_fast", 0.5},
                            {"original_max_position_embeddings", 32}}),
       {"rope_scaling.beta_fast", "beta_slow 1"}},
      {"linear_without_factor",
       "llama3_rope",
       set("rope_scaling", {{"type", "linear"}}),
       {"rope_scaling.factor", "missing"}},
      {"dynamic_without_positions",
       "llama3_rope",
       [](json& c) {
         c["rope_scaling"] = {{"type", "dynamic"}, {"factor", 2.0}};
         c.erase("max_position_embeddings");
       },
       {"config.json: max_position_embeddings", "missing", "dynamic"}},
      {"layer_types_length",
       "qwen3",
       set("layer_types", json::array({"full_attention"})),
       {"layer_types", "3 layers"}},
      {"max_window_layers",
       "qwen3",
       [](json& c) {
         c.erase("layer_types");
         c["max_window_layers"] = -1;
       },
       {"max_window_layers", "-1"}},
      {"sliding_window_text",
       "qwen3",
       [](json& c) {
         c["use_sliding_window"] = true;
         c["sliding_window"] = "wide";
         c["max_window_layers"] = 0;
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
       set("architectures", json::array({"GemmaForCausalLM"})),
       {"architectures", "'GemmaForCausalLM'",
        "LlamaForCausalLM, MistralForCausalLM, Qwen2ForCausalLM, Qwen3ForCausalLM"}},
      {"rope_type",
       "llama3_rope",
       [](json& c) { c["rope_scaling"]["rope_type"] = "longrope"; },
       {"rope_scaling.rope_type", "'longrope'", "default, linear, dynamic, yarn, llama3"}},
      {"old_rope_type",
       "llama3_rope",
       [](json& c) {
         c["rope_scaling"].erase("rope_type");
         c["rope_scaling"]["type"] = "mrope";
       },
       {"rope_scaling.type", "'mrope'", "default, linear, dynamic, yarn, llama3"}},
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
      {"chunked_layers",
       "qwen3",
       set("layer_types", json::array({"full_attention", "chunked_attention", "full_attention"})),
       {"layer_types", "chunked_attention"}},
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
      HasSubstr("config.json: a file"));
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
