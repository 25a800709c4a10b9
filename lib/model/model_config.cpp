#include "lib/model/model_config.h"

#include <fmt/format.h>

#include <cmath>
#include <limits>
#include <nlohmann/json.hpp>
#include <numbers>
#include <optional>
#include <utility>

#include "lib/core/error.h"
#include "lib/core/text.h"
#include "lib/model/json_file.h"

namespace s2o {
namespace {

constexpr std::int64_t kMaxSize = 1 << 24;  // keeps every product of two sizes within int64

// One object of config.json; `where` is "<file>: " or "<file>: rope_scaling.".
class Fields {
 public:
  Fields(const nlohmann::json& object, std::string where)
      : object_(object), where_(std::move(where)) {}

  // Null when the key is absent or null: transformers writes unset fields as null.
  const nlohmann::json* find(const char* key) const {
    const auto it = object_.find(key);
    return it == object_.end() || it->is_null() ? nullptr : &*it;
  }

  std::string place(const char* key) const { return where_ + key; }

  [[noreturn]] void wrong(const char* key, const char* expected) const {
    const nlohmann::json* value = find(key);
    throw InputError(value == nullptr
                         ? fmt::format("{}: missing, expected {}", place(key), expected)
                         : fmt::format("{}: found {}, expected {}", place(key),
                                       shortened(value->dump()), expected));
  }

  std::int64_t positive(const char* key, std::optional<std::int64_t> fallback = {},
                        std::int64_t max = kMaxSize) const {
    const nlohmann::json* value = find(key);
    if (value == nullptr && fallback) return *fallback;
    const bool fits = value != nullptr && value->is_number_integer() &&
                      value->get<double>() >= 1.0 &&
                      value->get<double>() <= static_cast<double>(max);
    if (!fits) wrong(key, fmt::format("an integer in [1, {}]", max).c_str());
    return value->get<std::int64_t>();
  }

  // Finite, > `above`.
  float real(const char* key, std::optional<float> fallback, float above = 0.0f) const {
    const nlohmann::json* value = find(key);
    if (value == nullptr && fallback) return *fallback;
    const bool fits = value != nullptr && value->is_number() && value->get<double>() > above &&
                      value->get<double>() <= std::numeric_limits<float>::max();
    if (!fits) wrong(key, fmt::format("a number > {}", above).c_str());
    return value->get<float>();
  }

  bool flag(const char* key, bool fallback) const {
    const nlohmann::json* value = find(key);
    if (value == nullptr) return fallback;
    if (!value->is_boolean()) wrong(key, "true or false");
    return value->get<bool>();
  }

  std::string text(const char* key, std::optional<std::string> fallback) const {
    const nlohmann::json* value = find(key);
    if (value == nullptr && fallback) return *fallback;
    if (value == nullptr || !value->is_string()) wrong(key, "a string");
    return value->get<std::string>();
  }

 private:
  static std::string shortened(const std::string& json) {
    return json.size() <= 80 ? json : json.substr(0, 77) + "...";
  }

  const nlohmann::json& object_;
  std::string where_;
};

[[noreturn]] void unsupported(const std::string& place, const std::string& found,
                              const std::string& supported) {
  throw UnsupportedError(fmt::format("{}: found {}, supported: {}", place, found, supported));
}

std::string read_architecture(const Fields& fields) {
  const nlohmann::json* list = fields.find("architectures");
  if (list == nullptr || !list->is_array() || list->size() != 1 || !list->front().is_string()) {
    fields.wrong("architectures", "a list of one name");
  }
  const auto name = list->front().get<std::string>();
  const std::vector<std::string> supported = {"LlamaForCausalLM", "Qwen3ForCausalLM"};
  for (const std::string& known : supported) {
    if (name == known) return name;
  }
  unsupported(fields.place("architectures"), "'" + name + "'", join(supported));
}

// Features that would change the result and are not implemented.
void refuse_unsupported(const Fields& fields, int num_layers) {
  const std::string activation = fields.text("hidden_act", "silu");
  if (activation != "silu" && activation != "swish") {
    unsupported(fields.place("hidden_act"), "'" + activation + "'", "silu");
  }
  if (fields.find("quantization_config") != nullptr) {
    unsupported(fields.place("quantization_config"), "quantised weights", "F32, F16 and BF16");
  }
  // transformers uses the window from layer max_window_layers on; absent flags mean "used".
  if (fields.find("sliding_window") != nullptr && fields.flag("use_sliding_window", true)) {
    const std::int64_t window = fields.positive("sliding_window", {}, 1ll << 40);
    const nlohmann::json* full_layers = fields.find("max_window_layers");
    const bool unused = full_layers != nullptr && full_layers->is_number_integer() &&
                        full_layers->get<std::int64_t>() >= num_layers;
    if (!unused) {
      unsupported(fields.place("sliding_window"), std::to_string(window),
                  "full causal attention in every layer");
    }
  }
  if (const nlohmann::json* types = fields.find("layer_types")) {
    if (!types->is_array()) fields.wrong("layer_types", "a list of names");
    for (const nlohmann::json& type : *types) {
      if (type != "full_attention") {
        unsupported(fields.place("layer_types"), type.dump(), "full_attention");
      }
    }
  }
}

void read_llama3(const Fields& fields, std::int64_t max_positions, RopeConfig& rope) {
  rope.type = RopeType::kLlama3;
  rope.factor = fields.real("factor", {});
  rope.low_freq_factor = fields.real("low_freq_factor", {});
  rope.high_freq_factor = fields.real("high_freq_factor", {});
  if (rope.high_freq_factor <= rope.low_freq_factor) {
    fields.wrong("high_freq_factor",
                 fmt::format("more than low_freq_factor {}", rope.low_freq_factor).c_str());
  }
  const std::optional<std::int64_t> fallback =
      max_positions > 0 ? std::optional(max_positions) : std::nullopt;
  rope.original_max_position_embeddings =
      fields.positive("original_max_position_embeddings", fallback, 1ll << 40);
}

void check_whole_heads_rotate(const Fields& fields) {
  const float part = fields.real("partial_rotary_factor", 1.0f);
  if (part == 1.0f) return;
  unsupported(fields.place("partial_rotary_factor"), fmt::format("{}", part), "1");
}

// Old spelling: rope_theta and rope_scaling {rope_type or type, ...}; new: rope_parameters, which
// holds rope_theta as well.
RopeConfig read_rope(const nlohmann::json& root, const Fields& fields, const std::string& file,
                     std::int64_t max_positions) {
  RopeConfig rope;
  rope.theta = fields.real("rope_theta", rope.theta);
  check_whole_heads_rotate(fields);
  const char* key = fields.find("rope_scaling") != nullptr ? "rope_scaling" : "rope_parameters";
  if (fields.find(key) == nullptr) return rope;
  if (!root.at(key).is_object()) fields.wrong(key, "an object");
  const Fields scaling(root.at(key), fmt::format("{}: {}.", file, key));
  rope.theta = scaling.real("rope_theta", rope.theta);
  check_whole_heads_rotate(scaling);
  const char* type_key = scaling.find("rope_type") != nullptr ? "rope_type" : "type";
  const std::string type = scaling.text(type_key, "default");
  if (type == "llama3") {
    read_llama3(scaling, max_positions, rope);
  } else if (type != "default") {
    unsupported(scaling.place(type_key), "'" + type + "'", "default, llama3");
  } else {
    // Per-layer-type rope parameters are objects inside this one.
    for (const auto& [name, value] : root.at(key).items()) {
      if (value.is_object())
        unsupported(scaling.place(name.c_str()), "an object", "one rope for all layers");
    }
  }
  return rope;
}

void read_heads(const Fields& fields, ModelConfig& config) {
  config.num_q_heads = static_cast<int>(fields.positive("num_attention_heads"));
  config.num_kv_heads =
      static_cast<int>(fields.positive("num_key_value_heads", config.num_q_heads));
  if (config.num_q_heads % config.num_kv_heads != 0) {
    fields.wrong("num_key_value_heads",
                 fmt::format("a divisor of num_attention_heads {}", config.num_q_heads).c_str());
  }
  // Qwen3Config has a default of its own; Llama derives it.
  std::optional<std::int64_t> fallback;
  if (config.qk_norm) {
    fallback = 128;
  } else if (config.hidden_size % config.num_q_heads == 0) {
    fallback = config.hidden_size / config.num_q_heads;
  } else if (fields.find("head_dim") == nullptr) {
    fields.wrong(
        "num_attention_heads",
        fmt::format("a divisor of hidden_size {}, or a head_dim", config.hidden_size).c_str());
  }
  config.head_dim = static_cast<int>(fields.positive("head_dim", fallback, 1 << 16));
  if (config.head_dim % 2 != 0) {
    throw InputError(fmt::format("{}: found {}, expected an even number (RoPE rotates pairs)",
                                 fields.place("head_dim"), config.head_dim));
  }
}

}  // namespace

ModelConfig read_model_config(const std::filesystem::path& folder) {
  const std::filesystem::path file = folder / "config.json";
  if (!std::filesystem::is_directory(folder)) {
    throw InputError(fmt::format("{}: no such folder, expected a model directory with config.json",
                                 folder.string()));
  }
  const nlohmann::json root = read_json_object(file);
  const Fields fields(root, file.string() + ": ");
  ModelConfig config;
  config.folder = folder;
  config.name = std::filesystem::weakly_canonical(folder).filename().string();
  config.architecture = read_architecture(fields);
  config.qk_norm = config.architecture == "Qwen3ForCausalLM";
  config.num_layers = static_cast<int>(fields.positive("num_hidden_layers", {}, 1 << 16));
  config.hidden_size = static_cast<int>(fields.positive("hidden_size"));
  config.intermediate_size = static_cast<int>(fields.positive("intermediate_size"));
  config.vocab_size = static_cast<int>(fields.positive("vocab_size"));
  config.max_position_embeddings = fields.positive("max_position_embeddings", 0, 1ll << 40);
  config.rms_norm_eps = fields.real("rms_norm_eps", config.rms_norm_eps);
  config.tie_word_embeddings = fields.flag("tie_word_embeddings", false);
  config.attention_bias = fields.flag("attention_bias", false);
  config.mlp_bias = !config.qk_norm && fields.flag("mlp_bias", false);
  read_heads(fields, config);
  refuse_unsupported(fields, config.num_layers);
  config.rope = read_rope(root, fields, file.string(), config.max_position_embeddings);
  return config;
}

std::vector<float> rope_inverse_frequencies(const ModelConfig& config) {
  const RopeConfig& rope = config.rope;
  std::vector<float> frequencies(static_cast<std::size_t>(config.head_dim / 2));
  for (std::size_t i = 0; i < frequencies.size(); ++i) {
    const float exponent = static_cast<float>(2 * i) / static_cast<float>(config.head_dim);
    frequencies[i] = 1.0f / std::pow(rope.theta, exponent);
  }
  if (rope.type == RopeType::kDefault) return frequencies;
  const auto original = static_cast<float>(rope.original_max_position_embeddings);
  const float longest_kept = original / rope.high_freq_factor;
  const float shortest_divided = original / rope.low_freq_factor;
  for (float& frequency : frequencies) {
    const float wavelength = 2.0f * std::numbers::pi_v<float> / frequency;  // tokens
    if (wavelength > shortest_divided) {
      frequency /= rope.factor;
    } else if (wavelength >= longest_kept) {
      const float kept = (original / wavelength - rope.low_freq_factor) /
                         (rope.high_freq_factor - rope.low_freq_factor);
      frequency = (1.0f - kept) * frequency / rope.factor + kept * frequency;
    }
  }
  return frequencies;
}

}  // namespace s2o
