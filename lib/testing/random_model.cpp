#include "lib/testing/random_model.h"

#include <cmath>
#include <cstring>
#include <utility>

#include "kernels/common/bf16.h"
#include "lib/core/random.h"

namespace s2o::testing {
namespace {

class Maker {
 public:
  Maker(std::uint64_t seed, DType dtype) : seed_(seed), dtype_(dtype) {}

  HostTensor matrix(std::int64_t rows, std::int64_t columns, double deviation) {
    const CounterRandom random(seed_, stream_++);
    const std::size_t element = dtype_bytes(dtype_);
    const auto count = static_cast<std::size_t>(rows * columns);
    std::shared_ptr<std::byte[]> data(new std::byte[count * element]);
    for (std::size_t i = 0; i < count; ++i) {
      const auto value = static_cast<float>(deviation * random.normal(i));
      const std::uint16_t bits =
          dtype_ == DType::kBF16 ? float_to_bf16(value) : float_to_fp16(value);
      const void* const source = dtype_ == DType::kF32 ? static_cast<const void*>(&value) : &bits;
      std::memcpy(data.get() + i * element, source, element);
    }
    return {.info = {.name = "random",
                     .dtype = dtype_,
                     .shape = {rows, columns},
                     .num_bytes = count * element},
            .file = "random",
            .data = {data, data.get()}};
  }
  std::vector<float> vector(std::int64_t size, double mean, double deviation) {
    const CounterRandom random(seed_, stream_++);
    std::vector<float> values;
    for (std::int64_t i = 0; i < size; ++i) {
      values.push_back(
          static_cast<float>(mean + deviation * random.normal(static_cast<std::uint64_t>(i))));
    }
    return values;
  }
  std::vector<float> norm(std::int64_t size) { return vector(size, 1.0, 0.1); }
  Linear linear(std::int64_t out, std::int64_t in, bool has_bias) {
    Linear result;
    result.weight = matrix(out, in, 1.0 / std::sqrt(static_cast<double>(in)));
    if (has_bias) result.bias = vector(out, 0.0, 0.5);
    return result;
  }

 private:
  std::uint64_t seed_;
  DType dtype_;
  std::uint64_t stream_ = 0;
};

}  // namespace

std::shared_ptr<Model> random_model(const ModelConfig& config, std::uint64_t seed, DType dtype) {
  Maker maker(seed, dtype);
  const std::int64_t hidden = config.hidden_size;
  const std::int64_t inner = config.intermediate_size;
  const std::int64_t q_size = static_cast<std::int64_t>(config.num_q_heads) * config.head_dim;
  const std::int64_t kv_size = static_cast<std::int64_t>(config.num_kv_heads) * config.head_dim;
  const bool bias = config.qkv_bias;
  auto model = std::make_shared<Model>();
  model->config = config;
  model->embedding = maker.matrix(config.vocab_size, hidden, 1.0);
  for (int i = 0; i < config.num_layers; ++i) {
    LayerWeights layer;
    layer.input_norm = maker.norm(hidden);
    layer.post_attention_norm = maker.norm(hidden);
    if (config.qk_norm) {
      layer.q_norm = maker.norm(config.head_dim);
      layer.k_norm = maker.norm(config.head_dim);
    }
    layer.q = maker.linear(q_size, hidden, bias);
    layer.k = maker.linear(kv_size, hidden, bias);
    layer.v = maker.linear(kv_size, hidden, bias);
    layer.o = maker.linear(hidden, q_size, config.output_bias);
    layer.gate = maker.linear(inner, hidden, config.mlp_bias);
    layer.up = maker.linear(inner, hidden, config.mlp_bias);
    layer.down = maker.linear(hidden, inner, config.mlp_bias);
    model->layers.push_back(std::move(layer));
  }
  model->final_norm = maker.norm(hidden);
  if (config.tie_word_embeddings) {
    model->output.weight = model->embedding;
  } else {
    model->output = maker.linear(config.vocab_size, hidden, false);
  }
  return model;
}

}  // namespace s2o::testing
