#include "lib/prefill/weight_layout.h"

namespace s2o {
namespace {

class Placer {
 public:
  explicit Placer(std::byte* base) : base_(base) {}

  std::uint16_t* matrix(std::int64_t rows, std::int64_t columns) {
    return reinterpret_cast<std::uint16_t*>(take(rows * columns * 2));
  }
  float* vector(std::int64_t size) { return reinterpret_cast<float*>(take(size * 4)); }
  PlacedLinear linear(std::int64_t out, std::int64_t in, bool has_bias) {
    PlacedLinear result;
    result.out_features = out;
    result.in_features = in;
    result.weight = matrix(out, in);
    if (has_bias) result.bias = vector(out);
    return result;
  }
  std::int64_t bytes() const { return bytes_; }

 private:
  std::byte* take(std::int64_t size) {
    constexpr std::int64_t kAlignment = 256;
    std::byte* const place = base_ == nullptr ? nullptr : base_ + bytes_;
    bytes_ += (size + kAlignment - 1) / kAlignment * kAlignment;
    return place;
  }

  std::byte* base_;
  std::int64_t bytes_ = 0;
};

}  // namespace

PlacedWeights place_weights(const ModelConfig& config, std::byte* base) {
  return place_weights(config, slice_model(config, 0, 1), base);
}

PlacedWeights place_weights(const ModelConfig& whole, const ModelSlice& slice, std::byte* base) {
  const ModelConfig config = slice_config(whole, slice);
  const std::int64_t hidden = config.hidden_size;
  const std::int64_t inner = config.intermediate_size;
  const std::int64_t q_size = static_cast<std::int64_t>(config.num_q_heads) * config.head_dim;
  const std::int64_t kv_size = static_cast<std::int64_t>(config.num_kv_heads) * config.head_dim;
  Placer placer(base);
  PlacedWeights weights;
  weights.embedding = placer.matrix(whole.vocab_size, hidden);
  for (int i = 0; i < config.num_layers; ++i) {
    PlacedLayer layer;
    layer.input_norm = placer.vector(hidden);
    layer.post_attention_norm = placer.vector(hidden);
    if (config.qk_norm) {
      layer.q_norm = placer.vector(config.head_dim);
      layer.k_norm = placer.vector(config.head_dim);
    }
    layer.qkv = placer.linear(q_size + 2 * kv_size, hidden, config.qkv_bias);
    layer.o = placer.linear(hidden, q_size, config.output_bias);
    layer.gate_up = placer.linear(2 * inner, hidden, config.mlp_bias);
    layer.down = placer.linear(hidden, inner, config.mlp_bias);
    weights.layers.push_back(layer);
  }
  weights.final_norm = placer.vector(hidden);
  if (config.tie_word_embeddings) {
    std::uint16_t* const rows =
        base == nullptr ? nullptr : weights.embedding + slice.vocab.first * hidden;
    weights.output = {rows, nullptr, config.vocab_size, hidden};
  } else {
    weights.output = placer.linear(config.vocab_size, hidden, false);
  }
  weights.is_tied = config.tie_word_embeddings;
  weights.bytes = placer.bytes();
  return weights;
}

}  // namespace s2o
