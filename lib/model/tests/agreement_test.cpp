// The forward pass against transformers: tiny random models (scripts/make_model_fixtures.py).
#include <gtest/gtest.h>

#include <cmath>
#include <filesystem>
#include <string>
#include <vector>

#include "lib/input/formats/format.h"
#include "lib/model/logits.h"
#include "lib/model/prefill.h"
#include "lib/model/tokens.h"

namespace s2o {
namespace {

const std::filesystem::path kModels =
    std::filesystem::path(S2O_SOURCE_DIR) / "data/fixtures/models";
constexpr int kCapturedLayer = 1;

// Largest difference relative to the largest expected magnitude.
double relative_error(const std::vector<float>& found, const std::vector<float>& expected) {
  EXPECT_EQ(found.size(), expected.size());
  double difference = 0.0;
  double magnitude = 0.0;
  for (std::size_t i = 0; i < std::min(found.size(), expected.size()); ++i) {
    difference = std::max(difference, std::abs(double{found[i]} - expected[i]));
    magnitude = std::max(magnitude, std::abs(double{expected[i]}));
  }
  return difference / magnitude;
}

class Agreement : public testing::TestWithParam<std::string> {
 protected:
  Agreement()
      : folder_(kModels / GetParam()),
        expected_(open_tensor_file(folder_ / "expected.safetensors")),
        model_(load_model(folder_)) {
    const TokenFile file = read_token_file(folder_ / "expected.safetensors");
    tokens_ = select_tokens(file, 0, static_cast<std::int64_t>(file.ids.size()),
                            model_->config.vocab_size);
  }

  std::filesystem::path folder_;
  std::unique_ptr<TensorFile> expected_;
  std::shared_ptr<const Model> model_;
  std::vector<std::int32_t> tokens_;
};

TEST_P(Agreement, logits_fp32_equal_transformers) {
  Prefill prefill(model_, tokens_, {.dtype = StorageDType::kF32});
  prefill.run_to(prefill.num_layers(), dense_attention, {});
  std::vector<std::int64_t> positions(tokens_.size());
  for (std::size_t i = 0; i < positions.size(); ++i) positions[i] = static_cast<std::int64_t>(i);
  const std::vector<float> logits = compute_logits(*model_, prefill.hidden(), positions);
  EXPECT_LT(relative_error(logits, expected_->read("logits").to_float()), 1e-5);
}

TEST_P(Agreement, layer_input_fp32_equals_transformers) {
  Prefill prefill(model_, tokens_, {.dtype = StorageDType::kF32});
  prefill.run_to(kCapturedLayer, dense_attention, {});
  const AttentionInput input = prefill.layer_input();
  EXPECT_LT(relative_error(input.q, expected_->read("q").to_float()), 1e-5);
  EXPECT_LT(relative_error(input.k, expected_->read("k").to_float()), 1e-5);
  EXPECT_LT(relative_error(input.v, expected_->read("v").to_float()), 1e-5);
}

INSTANTIATE_TEST_SUITE_P(transformers, Agreement,
                         testing::Values("llama_tied", "llama_untied", "llama3_rope", "llama_yarn",
                                         "qwen2", "qwen2_yarn", "qwen2_dynamic", "qwen3",
                                         "mistral_linear", "mistral_yarn"),
                         [](const auto& test) { return test.param; });

}  // namespace
}  // namespace s2o
