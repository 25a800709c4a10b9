#include "lib/model/model_shapes.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>

#include "lib/core/error.h"
#include "lib/testing/files.h"

namespace s2o {
namespace {

using ::testing::HasSubstr;
using testing_support::data_folder;
using testing_support::message_of;

// The counts that the publishers give: 8.03 and 8.19 billion.
TEST(model_shapes, parameters_are_those_of_the_published_models) {
  EXPECT_EQ(num_parameters(model_shape("llama-3.1-8b", "test")), 8030261248);
  EXPECT_EQ(num_parameters(model_shape("qwen3-8b", "test")), 8190735360);
}

TEST(model_shapes, tiny_llama_is_the_shipped_one) {
  const ModelConfig shipped = read_model_config(data_folder() / "tiny-llama");
  const ModelConfig shape = model_shape("tiny-llama", "test");
  EXPECT_EQ(shape.architecture, shipped.architecture);
  EXPECT_EQ(shape.num_layers, shipped.num_layers);
  EXPECT_EQ(shape.hidden_size, shipped.hidden_size);
  EXPECT_EQ(shape.intermediate_size, shipped.intermediate_size);
  EXPECT_EQ(shape.num_q_heads, shipped.num_q_heads);
  EXPECT_EQ(shape.num_kv_heads, shipped.num_kv_heads);
  EXPECT_EQ(shape.head_dim, shipped.head_dim);
  EXPECT_EQ(shape.vocab_size, shipped.vocab_size);
  EXPECT_EQ(shape.max_position_embeddings, shipped.max_position_embeddings);
  EXPECT_EQ(shape.tie_word_embeddings, shipped.tie_word_embeddings);
  EXPECT_EQ(shape.rms_norm_eps, shipped.rms_norm_eps);
  EXPECT_EQ(shape.rope.theta, shipped.rope.theta);
  std::int64_t bytes = 2 * num_parameters(shape);
  const auto file_bytes = static_cast<std::int64_t>(
      std::filesystem::file_size(data_folder() / "tiny-llama/model.safetensors"));
  EXPECT_NEAR(static_cast<double>(bytes), static_cast<double>(file_bytes), 1e5);
}

TEST(model_shapes, seeded_weights_have_the_scale_that_keeps_activations) {
  const ModelConfig shape = model_shape("tiny-llama", "test");
  const auto model = make_seeded_model(shape, 1);
  const std::vector<float> values = model->layers[2].down.weight.to_float();
  ASSERT_EQ(values.size(), 256u * 704u);
  double squares = 0.0;
  for (const float value : values) squares += static_cast<double>(value) * value;
  EXPECT_NEAR(squares / static_cast<double>(values.size()), 1.0 / 704.0, 0.02 / 704.0);
  EXPECT_NE(model->layers[0].q.weight.to_float(), model->layers[1].q.weight.to_float());
  EXPECT_EQ(model->output.weight.data, model->embedding.data);
}

TEST(model_shapes, unknown_names_get_a_suggestion) {
  EXPECT_THAT(message_of<ConfigError>([] { model_shape("qwen3-8", "x.json: model.shape"); }),
              HasSubstr("x.json: model.shape: unknown shape 'qwen3-8', did you mean 'qwen3-8b'?"));
}

}  // namespace
}  // namespace s2o
