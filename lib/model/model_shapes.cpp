#include "lib/model/model_shapes.h"

#include <fmt/format.h>

#include <cmath>
#include <cstring>

#include "kernels/common/bf16.h"
#include "kernels/common/parallel.h"
#include "lib/config/json_reader.h"
#include "lib/core/error.h"
#include "lib/core/memory.h"
#include "lib/core/random.h"
#include "lib/core/text.h"

namespace s2o {
namespace {

// From the config.json that the publishers ship with these models.
const std::vector<ModelConfig>& known_shapes() {
  static const std::vector<ModelConfig> kShapes = {
      {.name = "llama-3.1-8b",
       .architecture = "LlamaForCausalLM",
       .num_layers = 32,
       .hidden_size = 4096,
       .intermediate_size = 14336,
       .num_q_heads = 32,
       .num_kv_heads = 8,
       .head_dim = 128,
       .vocab_size = 128256,
       .max_position_embeddings = 131072,
       .rms_norm_eps = 1e-5f,
       .rope = {.type = RopeType::kLlama3,
                .theta = 500000.0f,
                .factor = 8.0f,
                .original_max_position_embeddings = 8192,
                .low_freq_factor = 1.0f,
                .high_freq_factor = 4.0f}},
      {.name = "qwen3-8b",
       .architecture = "Qwen3ForCausalLM",
       .num_layers = 36,
       .hidden_size = 4096,
       .intermediate_size = 12288,
       .num_q_heads = 32,
       .num_kv_heads = 8,
       .head_dim = 128,
       .vocab_size = 151936,
       .max_position_embeddings = 40960,
       .rms_norm_eps = 1e-6f,
       .qk_norm = true,
       .rope = {.theta = 1000000.0f}},
      {.name = "tiny-llama",
       .architecture = "LlamaForCausalLM",
       .num_layers = 4,
       .hidden_size = 256,
       .intermediate_size = 704,
       .num_q_heads = 8,
       .num_kv_heads = 2,
       .head_dim = 128,
       .vocab_size = 4096,
       .max_position_embeddings = 32768,
       .rms_norm_eps = 1e-5f,
       .tie_word_embeddings = true,
       .rope = {.theta = 500000.0f}},
  };
  return kShapes;
}

class SeededWeights {
 public:
  explicit SeededWeights(std::uint64_t seed) : seed_(seed) {}

  // Uniform with variance 1 / columns, so that a product keeps the variance of its input.
  HostTensor matrix(const std::string& name, std::int64_t rows, std::int64_t columns) {
    const std::int64_t size = rows * columns;
    const CounterRandom random(seed_, stream_++);
    const double width = std::sqrt(12.0 / static_cast<double>(columns));
    std::shared_ptr<std::byte[]> bytes(
        new std::byte[static_cast<std::size_t>(size) * sizeof(std::uint16_t)]);
    parallel_for(rows, [&](std::int64_t row) {
      for (std::int64_t i = row * columns; i < (row + 1) * columns; ++i) {
        const double value = (random.uniform(static_cast<std::uint64_t>(i)) - 0.5) * width;
        const std::uint16_t bits = float_to_bf16(static_cast<float>(value));
        std::memcpy(bytes.get() + i * static_cast<std::int64_t>(sizeof bits), &bits, sizeof bits);
      }
    });
    return {.info = {.name = name,
                     .dtype = DType::kBF16,
                     .shape = {rows, columns},
                     .num_bytes = static_cast<std::size_t>(size) * sizeof(std::uint16_t)},
            .file = "seeded weights",
            .data = {bytes, bytes.get()}};
  }

  LayerWeights layer(const ModelConfig& config) {
    const std::int64_t hidden = config.hidden_size;
    const std::int64_t inner = config.intermediate_size;
    const std::int64_t q_size = static_cast<std::int64_t>(config.num_q_heads) * config.head_dim;
    const std::int64_t kv_size = static_cast<std::int64_t>(config.num_kv_heads) * config.head_dim;
    const auto ones = [](std::int64_t n) {
      return std::vector<float>(static_cast<std::size_t>(n), 1.0f);
    };
    LayerWeights layer;
    layer.input_norm = ones(hidden);
    layer.post_attention_norm = ones(hidden);
    layer.q_norm = ones(config.qk_norm ? config.head_dim : 0);
    layer.k_norm = layer.q_norm;
    layer.q.weight = matrix("q_proj", q_size, hidden);
    layer.k.weight = matrix("k_proj", kv_size, hidden);
    layer.v.weight = matrix("v_proj", kv_size, hidden);
    layer.o.weight = matrix("o_proj", hidden, q_size);
    layer.gate.weight = matrix("gate_proj", inner, hidden);
    layer.up.weight = matrix("up_proj", inner, hidden);
    layer.down.weight = matrix("down_proj", hidden, inner);
    return layer;
  }

 private:
  std::uint64_t seed_;
  std::uint64_t stream_ = 0;
};

}  // namespace

std::vector<std::string> model_shape_names() {
  std::vector<std::string> names;
  for (const ModelConfig& shape : known_shapes()) names.push_back(shape.name);
  return names;
}

ModelConfig model_shape(const std::string& name, const std::string& path) {
  for (const ModelConfig& shape : known_shapes()) {
    if (shape.name == name) return shape;
  }
  const std::vector<std::string> names = model_shape_names();
  throw ConfigError(fmt::format("{}: unknown shape '{}'{}; expected one of: {}", path, name,
                                did_you_mean(name, names), join(names)));
}

std::int64_t num_parameters(const ModelConfig& config) {
  const std::int64_t hidden = config.hidden_size;
  const std::int64_t heads = config.num_q_heads + config.num_kv_heads;
  const std::int64_t layer = 2 * hidden * heads * config.head_dim +
                             3 * hidden * config.intermediate_size + 2 * hidden +
                             (config.qk_norm ? 2 * config.head_dim : 0);
  const std::int64_t table = config.vocab_size * hidden;
  return config.num_layers * layer + (config.tie_word_embeddings ? 1 : 2) * table + hidden;
}

std::shared_ptr<const Model> make_seeded_model(const ModelConfig& config, std::uint64_t seed) {
  require_memory(2 * static_cast<std::uint64_t>(num_parameters(config)),
                 fmt::format("seeded weights of {}", config.name));
  SeededWeights weights(seed);
  auto model = std::make_shared<Model>();
  model->config = config;
  model->embedding = weights.matrix("embed_tokens", config.vocab_size, config.hidden_size);
  for (int i = 0; i < config.num_layers; ++i) model->layers.push_back(weights.layer(config));
  model->final_norm.assign(static_cast<std::size_t>(config.hidden_size), 1.0f);
  model->output.weight = config.tie_word_embeddings
                             ? model->embedding
                             : weights.matrix("lm_head", config.vocab_size, config.hidden_size);
  return model;
}

}  // namespace s2o
