#include "lib/prefill/model_slice.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>

#include "lib/core/error.h"
#include "lib/core/random.h"
#include "lib/prefill/prefill_memory.h"
#include "lib/prefill/weight_layout.h"
#include "lib/testing/files.h"
#include "lib/testing/model_shapes.h"

namespace s2o {
namespace {

using ::testing::HasSubstr;
using testing_support::data_folder;

constexpr std::int64_t kRows = 9;

// The fixtures' MLP is too small for the multiples of 8 that a GPU needs; here any cut will do.
std::vector<ModelSlice> slices_of(const ModelConfig& config, int count) {
  ModelConfig wide = config;
  wide.intermediate_size = 8 * count;
  std::vector<ModelSlice> slices;
  for (int i = 0; i < count; ++i) {
    slices.push_back(slice_model(wide, i, count));
    const std::int64_t first = static_cast<std::int64_t>(config.intermediate_size) * i / count;
    const std::int64_t end = static_cast<std::int64_t>(config.intermediate_size) * (i + 1) / count;
    slices.back().inner = {first, end - first};
  }
  return slices;
}

std::vector<float> product(const Linear& linear, const std::vector<float>& x) {
  std::vector<float> y(static_cast<std::size_t>(kRows * linear.out_features()));
  apply_linear(linear, x.data(), kRows, y.data(), /*accumulate=*/false);
  return y;
}

Linear without_bias(Linear linear) {
  linear.bias.clear();
  return linear;
}

// Causal attention of token-major q [rows, q_heads * head_dim], k and v; no RoPE: slices are under
// test.
std::vector<float> attend(const ModelConfig& config, const std::vector<float>& q,
                          const std::vector<float>& k, const std::vector<float>& v) {
  const int d = config.head_dim;
  const int q_width = config.num_q_heads * d;
  const int kv_width = config.num_kv_heads * d;
  const int group = config.num_q_heads / config.num_kv_heads;
  std::vector<float> out(q.size());
  for (int head = 0; head < config.num_q_heads; ++head) {
    for (int row = 0; row < kRows; ++row) {
      std::vector<double> weights;
      double sum = 0.0;
      for (int key = 0; key <= row; ++key) {
        double score = 0.0;
        for (int i = 0; i < d; ++i) {
          score += q[row * q_width + head * d + i] * k[key * kv_width + head / group * d + i];
        }
        weights.push_back(std::exp(score / std::sqrt(static_cast<double>(d))));
        sum += weights.back();
      }
      for (int i = 0; i < d; ++i) {
        double value = 0.0;
        for (int key = 0; key <= row; ++key) {
          value += weights[key] / sum * v[key * kv_width + head / group * d + i];
        }
        out[row * q_width + head * d + i] = static_cast<float>(value);
      }
    }
  }
  return out;
}

// Logits [rows, vocab_size] of a model that the slices share, summing where NCCL would.
std::vector<float> forward(const Model& model, const std::vector<ModelSlice>& slices) {
  const ModelConfig& config = model.config;
  const auto hidden = static_cast<std::size_t>(config.hidden_size);
  const auto vocab = static_cast<std::size_t>(config.vocab_size);
  std::vector<float> residual(kRows * hidden);
  for (std::size_t i = 0; i < residual.size(); ++i) {
    residual[i] = std::sin(static_cast<float>(i) * 0.37f);
  }
  std::vector<float> x(residual.size());
  const auto norm = [&](const std::vector<float>& weight) {
    rms_norm_rows(residual.data(), weight.data(), config.rms_norm_eps, kRows, config.hidden_size,
                  x.data());
  };
  const auto add = [&](const std::vector<float>& delta) {
    for (std::size_t i = 0; i < delta.size(); ++i) residual[i] += delta[i];
  };
  const auto add_bias = [&](const std::vector<float>& bias) {
    for (std::size_t i = 0; !bias.empty() && i < residual.size(); ++i) {
      residual[i] += bias[i % hidden];
    }
  };
  for (const LayerWeights& whole : model.layers) {
    std::vector<LayerWeights> parts;
    for (const ModelSlice& slice : slices) {
      parts.push_back(slice_layer(whole, config.head_dim, slice));
    }
    norm(whole.input_norm);
    for (std::size_t i = 0; i < parts.size(); ++i) {
      const LayerWeights& part = parts[i];
      const std::vector<float> out = attend(slice_config(config, slices[i]), product(part.q, x),
                                            product(part.k, x), product(part.v, x));
      add(product(without_bias(part.o), out));
    }
    add_bias(parts.front().o.bias);
    norm(whole.post_attention_norm);
    for (const LayerWeights& part : parts) {
      std::vector<float> gate = product(part.gate, x);
      const std::vector<float> up = product(part.up, x);
      for (std::size_t i = 0; i < gate.size(); ++i) {
        gate[i] = gate[i] / (1.0f + std::exp(-gate[i])) * up[i];
      }
      add(product(without_bias(part.down), gate));
    }
    add_bias(parts.front().down.bias);
  }
  norm(model.final_norm);
  std::vector<float> logits(kRows * vocab);
  for (const ModelSlice& slice : slices) {
    const Linear rows = {.weight = slice_rows(model.output.weight, slice.vocab), .bias = {}};
    const std::vector<float> found = product(rows, x);
    for (std::size_t i = 0; i < found.size(); ++i) {
      const auto width = static_cast<std::size_t>(slice.vocab.count);
      logits[i / width * vocab + static_cast<std::size_t>(slice.vocab.first) + i % width] =
          found[i];
    }
  }
  return logits;
}

TEST(model_slice, slices_with_a_sum_give_what_the_whole_gives) {
  for (const char* name : {"llama_untied", "llama_tied", "qwen2", "qwen2_yarn", "qwen3"}) {
    const auto model = load_model(data_folder() / "fixtures/models" / name);
    const std::vector<float> expected = forward(*model, {slice_model(model->config, 0, 1)});
    for (const int count : {2, 4}) {
      if (model->config.num_q_heads % count != 0) continue;
      const std::vector<float> found = forward(*model, slices_of(model->config, count));
      for (std::size_t i = 0; i < expected.size(); ++i) {
        ASSERT_NEAR(found[i], expected[i], 2e-5f * (1.0f + std::fabs(expected[i])))
            << name << " over " << count << ", logit " << i;
      }
    }
  }
}

TEST(model_slice, parts_cover_the_model_once) {
  const ModelConfig config = testing::llama_8b_config();
  for (const int count : {1, 2, 4, 8}) {
    std::int64_t q = 0, kv = 0, inner = 0, vocab = 0;
    for (int i = 0; i < count; ++i) {
      const ModelSlice slice = slice_model(config, i, count);
      EXPECT_EQ(slice.q_heads.first, q);
      EXPECT_EQ(slice.kv_heads.first, kv);
      EXPECT_EQ(slice.inner.first, inner);
      EXPECT_EQ(slice.vocab.first, vocab);
      q += slice.q_heads.count;
      kv += slice.kv_heads.count;
      inner += slice.inner.count;
      vocab += slice.vocab.count;
    }
    EXPECT_EQ(q, config.num_q_heads);
    EXPECT_EQ(kv, config.num_kv_heads);
    EXPECT_EQ(inner, config.intermediate_size);
    EXPECT_EQ(vocab, config.vocab_size);
  }
}

TEST(model_slice, fewer_kv_heads_than_gpus_are_repeated) {
  const ModelConfig config = testing::llama_8b_config();  // 32 query heads, 8 KV heads
  for (int i = 0; i < 16; ++i) {
    const ModelSlice slice = slice_model(config, i, 16);
    EXPECT_EQ(slice.q_heads.count, 2);
    EXPECT_EQ(slice.kv_heads.count, 1);
    EXPECT_EQ(slice.kv_heads.first, slice.q_heads.first / 4);
  }
}

void expect_refused(const ModelConfig& config, int count, const std::string& text) {
  try {
    slice_model(config, 0, count);
    FAIL() << count;
  } catch (const UnsupportedError& error) {
    EXPECT_THAT(error.what(), HasSubstr(text));
  }
}

TEST(model_slice, what_does_not_divide_is_refused) {
  ModelConfig config = testing::llama_8b_config();
  expect_refused(config, 3, "32 query heads do not divide");
  config.num_q_heads = 24;
  config.num_kv_heads = 8;
  expect_refused(config, 6, "8 KV heads neither divide nor can be repeated");
  config = testing::llama_8b_config();
  config.intermediate_size = 14344;  // 8 * 11 * 163
  expect_refused(config, 2, "intermediate_size 14344");
}

TEST(model_slice, two_gpus_hold_half_the_layers_each) {
  const ModelConfig config = testing::llama_8b_config();
  const std::int64_t whole = place_weights(config, nullptr).bytes;
  const std::int64_t part = place_weights(config, slice_model(config, 1, 2), nullptr).bytes;
  const std::int64_t embedding = 2ll * config.vocab_size * config.hidden_size;
  const std::int64_t norms = 4ll * 65 * config.hidden_size;
  EXPECT_EQ(2 * (part - embedding - norms), whole - embedding - norms);
}

TEST(PrefillMemory, over_gpus_weights_and_heads_shrink_and_sums_come_on_top) {
  const ModelConfig config = testing::llama_8b_config();
  const PrefillMemory one = plan_prefill_memory(config, 131072, 0, 139ll << 30);
  const PrefillMemory two = plan_prefill_memory(config, 131072, 0, 139ll << 30, 2);
  EXPECT_LT(two.total_bytes, one.total_bytes);
  EXPECT_GT(two.longest_seqlen, one.longest_seqlen);
  std::int64_t sum = 0;
  bool has_sums = false;
  for (const PrefillMemory::Part& part : two.parts) {
    sum += part.bytes;
    if (part.name != "sums over GPUs") continue;
    has_sums = true;
    EXPECT_EQ(part.bytes, 2ll * 131072 * config.hidden_size);
  }
  EXPECT_TRUE(has_sums);
  EXPECT_EQ(sum, two.total_bytes);
}

}  // namespace
}  // namespace s2o
