#include "lib/model/model_config.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>
#include <optional>

#include "lib/core/error.h"
#include "lib/core/log.h"
#include "lib/core/text.h"
#include "lib/model/config_fields.h"
#include "lib/model/json_file.h"

namespace s2o {
namespace {

struct Family {
  const char* architecture;
  // What transformers takes where a config does not say. 0: as many as query heads.
  std::int64_t num_kv_heads;
};
constexpr Family kFamilies[] = {{"LlamaForCausalLM", 0},
                                {"MistralForCausalLM", 8},
                                {"Qwen2ForCausalLM", 32},
                                {"Qwen3ForCausalLM", 32}};

bool is_qwen(const ModelConfig& config) {
  return config.architecture == "Qwen2ForCausalLM" || config.architecture == "Qwen3ForCausalLM";
}

const Family& read_family(const ConfigFields& fields) {
  const nlohmann::json* list = fields.find("architectures");
  if (list == nullptr || !list->is_array() || list->size() != 1 || !list->front().is_string()) {
    fields.wrong("architectures", "a list of one name");
  }
  const auto name = list->front().get<std::string>();
  std::vector<std::string> supported;
  for (const Family& family : kFamilies) {
    if (name == family.architecture) return family;
    supported.emplace_back(family.architecture);
  }
  fields.unsupported("architectures", "'" + name + "'", join(supported));
}

// Features that would change the result and are not implemented.
void refuse_unsupported(const ConfigFields& fields) {
  const std::string activation = fields.text("hidden_act", "silu");
  if (activation != "silu" && activation != "swish") {
    fields.unsupported("hidden_act", "'" + activation + "'", "silu");
  }
  if (fields.find("quantization_config") != nullptr) {
    fields.unsupported("quantization_config", "quantised weights", "F32, F16 and BF16");
  }
}

// What a projection has for biases is part of the architecture; Llama and Qwen3 configs decide.
void read_biases(const ConfigFields& fields, ModelConfig& config) {
  const bool decides =
      config.architecture == "LlamaForCausalLM" || config.architecture == "Qwen3ForCausalLM";
  const bool attention_bias = decides && fields.flag("attention_bias", false);
  config.qkv_bias = attention_bias || config.architecture == "Qwen2ForCausalLM";
  config.output_bias = attention_bias;
  config.mlp_bias = config.architecture == "LlamaForCausalLM" && fields.flag("mlp_bias", false);
}

// `sliding_window`: a number, null for none, absent for the default of transformers.
std::int64_t read_window(const ConfigFields& fields) {
  constexpr std::int64_t kDefaultWindow = 4096;
  if (fields.object().contains("sliding_window") && fields.find("sliding_window") == nullptr) {
    return 0;
  }
  return fields.positive("sliding_window", kDefaultWindow, ConfigFields::kMaxTokens);
}

// The layers of a Qwen model that transformers gives a sliding window: those that layer_types
// names, else those from max_window_layers on.
bool qwen_has_window_layers(const ConfigFields& fields, bool uses_window, int num_layers) {
  constexpr std::int64_t kDefaultFirst = 28;
  const nlohmann::json* const types = fields.find("layer_types");
  if (types == nullptr) {
    // 0 is allowed: all layers.
    const nlohmann::json* const first = fields.find("max_window_layers");
    if (first != nullptr && (!first->is_number_integer() || *first < 0)) {
      fields.wrong("max_window_layers", "a number of layers");
    }
    return uses_window &&
           (first != nullptr ? first->get<std::int64_t>() : kDefaultFirst) < num_layers;
  }
  if (!types->is_array()) fields.wrong("layer_types", "a list of names");
  if (types->size() != static_cast<std::size_t>(num_layers)) {
    fields.wrong("layer_types", fmt::format("one name for each of {} layers", num_layers));
  }
  bool has_window_layers = false;
  for (const nlohmann::json& type : *types) {
    if (type == "full_attention") continue;
    if (type != "sliding_attention") {
      fields.unsupported("layer_types", type.dump(), "full_attention");
    }
    has_window_layers = true;
  }
  if (has_window_layers && !uses_window) {
    fields.unsupported("layer_types", "sliding_attention, with no sliding_window in use",
                       "full_attention");
  }
  return has_window_layers;
}

// Tokens that a query of some layer sees at most, as transformers decides; 0: no layer is limited.
std::int64_t read_sliding_window(const ConfigFields& fields, const ModelConfig& config) {
  if (is_qwen(config)) {
    const std::int64_t window = fields.flag("use_sliding_window", false) ? read_window(fields) : 0;
    return qwen_has_window_layers(fields, window > 0, config.num_layers) ? window : 0;
  }
  if (config.architecture == "MistralForCausalLM") return read_window(fields);
  if (fields.find("sliding_window") != nullptr) {
    log_warning("{}: not part of {}, ignored as in transformers", fields.place("sliding_window"),
                config.architecture);
  }
  return 0;
}

void read_heads(const ConfigFields& fields, const Family& family, ModelConfig& config) {
  config.num_q_heads = static_cast<int>(fields.positive("num_attention_heads"));
  // Null means as many as query heads, absent the default of the architecture.
  const bool is_null = fields.object().contains("num_key_value_heads");
  config.num_kv_heads = static_cast<int>(fields.positive(
      "num_key_value_heads",
      is_null || family.num_kv_heads == 0 ? config.num_q_heads : family.num_kv_heads));
  if (config.num_q_heads % config.num_kv_heads != 0) {
    fields.wrong("num_key_value_heads",
                 fmt::format("a divisor of num_attention_heads {}", config.num_q_heads));
  }
  // Qwen3Config has a default of its own; the others derive it.
  std::optional<std::int64_t> fallback;
  if (config.qk_norm) {
    fallback = 128;
  } else if (config.hidden_size % config.num_q_heads == 0) {
    fallback = config.hidden_size / config.num_q_heads;
  } else if (fields.find("head_dim") == nullptr) {
    fields.wrong("num_attention_heads",
                 fmt::format("a divisor of hidden_size {}, or a head_dim", config.hidden_size));
  }
  config.head_dim = static_cast<int>(fields.positive("head_dim", fallback, 1 << 16));
  if (config.head_dim % 2 != 0) {
    throw InputError(fmt::format("{}: found {}, expected an even number (RoPE rotates pairs)",
                                 fields.place("head_dim"), config.head_dim));
  }
}

// Absurd parameters would show as NaN far from here, or as a model that knows no positions.
void check_rope(const ModelConfig& config, const std::string& file) {
  const RopeFrequencies frequencies = rope_frequencies(config.rope, config.head_dim, 1);
  for (const float frequency : frequencies.inverse) {
    if (std::isnormal(frequency) && frequency > 0.0f) continue;
    throw InputError(fmt::format(
        "{}: rope type {}, theta {} and factor {} turn a rotary pair by {} a token, expected a "
        "number above 0 that fp32 holds",
        file, rope_type_name(config.rope.type), config.rope.theta, config.rope.factor, frequency));
  }
}

}  // namespace

ModelConfig read_model_config(const std::filesystem::path& folder) {
  const std::filesystem::path file = folder / "config.json";
  std::error_code ignored;  // what cannot be asked here fails with a message when it is opened
  const auto status = std::filesystem::status(folder, ignored);
  if (std::filesystem::status_known(status) && !std::filesystem::is_directory(status)) {
    const bool is_file = std::filesystem::is_regular_file(status);
    throw InputError(fmt::format("{}: {}, expected a model directory with config.json{}",
                                 folder.string(), is_file ? "a file" : "no such folder",
                                 is_file && folder.extension() == ".gguf"
                                     ? "; scripts/gguf_to_hf.py makes one of a GGUF file"
                                     : ""));
  }
  const nlohmann::json root = read_json_object(file);
  const ConfigFields fields(root, file.string() + ": ");
  ModelConfig config;
  config.folder = folder;
  config.name = std::filesystem::weakly_canonical(folder, ignored).filename().string();
  const Family& family = read_family(fields);
  config.architecture = family.architecture;
  config.qk_norm = config.architecture == "Qwen3ForCausalLM";
  config.num_layers = static_cast<int>(fields.positive("num_hidden_layers", {}, 1 << 16));
  config.hidden_size = static_cast<int>(fields.positive("hidden_size"));
  config.intermediate_size = static_cast<int>(fields.positive("intermediate_size"));
  config.vocab_size = static_cast<int>(fields.positive("vocab_size"));
  config.max_position_embeddings =
      fields.positive("max_position_embeddings", 0, ConfigFields::kMaxTokens);
  config.rms_norm_eps = fields.real("rms_norm_eps", config.rms_norm_eps);
  config.tie_word_embeddings = fields.flag("tie_word_embeddings", false);
  read_biases(fields, config);
  read_heads(fields, family, config);
  refuse_unsupported(fields);
  config.sliding_window = read_sliding_window(fields, config);
  config.rope = read_rope_config(fields, config.max_position_embeddings);
  check_rope(config, file.string());
  return config;
}

void check_prompt_length(const ModelConfig& config, std::int64_t seqlen, const std::string& name) {
  if (config.sliding_window > 0 && seqlen > config.sliding_window) {
    throw UnsupportedError(fmt::format(
        "{}: {} tokens, {} has layers with a sliding_window of {} (config.json); supported is full "
        "causal attention: prompts of up to {} tokens, which a window does not cut",
        name, seqlen, config.name, config.sliding_window, config.sliding_window));
  }
  // Scaled rope reaches as far as it was scaled, whatever the config says.
  const RopeConfig& rope = config.rope;
  auto made_for = static_cast<double>(config.max_position_embeddings);
  if (rope.type == RopeType::kYarn || rope.type == RopeType::kLlama3) {
    made_for = std::max(made_for,
                        rope.factor * static_cast<double>(rope.original_max_position_embeddings));
  }
  if (made_for > 0 && static_cast<double>(seqlen) > made_for && rope.type != RopeType::kDynamic) {
    log_warning("{}: {} tokens, {} was made for {:.0f} (max_position_embeddings and rope scaling)",
                name, seqlen, config.name, made_for);
  }
}

}  // namespace s2o
