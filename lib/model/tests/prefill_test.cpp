#include "lib/model/prefill.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <omp.h>

#include <cstring>
#include <limits>
#include <numeric>
#include <vector>

#include "kernels/common/bf16.h"
#include "kernels/common/parallel.h"
#include "lib/core/error.h"
#include "lib/model/logits.h"
#include "lib/model/tests/model_folder.h"
#include "lib/model/tokens.h"

namespace s2o {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing_support::data_folder;
using testing_support::fixture_model;
using testing_support::message_of;

std::vector<std::int32_t> counting_tokens(int count, int vocab_size) {
  std::vector<std::int32_t> tokens;
  for (int i = 0; i < count; ++i) tokens.push_back(i * 37 % vocab_size);
  return tokens;
}

std::vector<std::int32_t> book_tokens(const Model& model, std::int64_t seqlen) {
  const TokenFile file = read_token_file(data_folder() / "tokens/war_and_peace.safetensors");
  return select_tokens(file, 0, seqlen, model.config.vocab_size);
}

// The figure of the model card, computed with another implementation.
TEST(HeldOutLoss, shipped_model_equals_independent_forward_pass) {
  const auto model = load_model(data_folder() / "tiny-llama");
  const std::vector<std::int32_t> tokens = book_tokens(*model, 1024);
  Prefill prefill(model, tokens, {});
  prefill.run_to(prefill.num_layers(), dense_attention, {});
  const std::vector<double> losses = next_token_losses(*model, prefill.hidden(), tokens);
  EXPECT_NEAR(std::accumulate(losses.begin(), losses.end(), 0.0) / 1023.0, 3.744, 0.0006);
}

TEST(HeldOutLoss, losses_are_the_log_softmax_of_the_logits) {
  const auto model = load_model(fixture_model("llama_untied"));
  const std::vector<std::int32_t> tokens = counting_tokens(300, model->config.vocab_size);
  Prefill prefill(model, tokens, {});
  prefill.run_to(prefill.num_layers(), dense_attention, {});
  const std::vector<double> losses = next_token_losses(*model, prefill.hidden(), tokens);
  ASSERT_EQ(losses.size(), 299u);
  for (const std::int64_t position : {0, 100, 255, 256, 298}) {
    const std::vector<float> logits = compute_logits(*model, prefill.hidden(), {position});
    double sum = 0.0;
    for (const float logit : logits) sum += std::exp(double{logit});
    EXPECT_NEAR(losses[position], std::log(sum) - logits[tokens[position + 1]], 1e-4) << position;
  }
}

TEST(HeldOutLoss, too_few_tokens_or_rows_are_refused) {
  const auto model = load_model(fixture_model("llama_tied"));
  Prefill prefill(model, {1, 2, 3}, {});
  EXPECT_THROW(next_token_losses(*model, prefill.hidden(), {1}), InputError);
  EXPECT_THROW(next_token_losses(*model, prefill.hidden(), {1, 2, 3, 4}), InputError);
  EXPECT_THROW(compute_logits(*model, prefill.hidden(), {3}), InputError);
  EXPECT_THROW(compute_logits(*model, prefill.hidden(), {-1}), InputError);
}

// 600 tokens: several row blocks, the last one short.
TEST(Prefill, number_of_threads_does_not_change_a_bit) {
  const auto model = load_model(data_folder() / "tiny-llama");
  const std::vector<std::int32_t> tokens = book_tokens(*model, 600);
  const int threads = omp_get_max_threads();
  std::vector<std::vector<float>> hidden;
  for (const int count : {1, 2, 3}) {
    omp_set_num_threads(count);
    Prefill prefill(model, tokens, {});
    prefill.run_to(2, dense_attention, {});
    hidden.push_back(prefill.hidden());
  }
  omp_set_num_threads(threads);
  for (std::size_t i = 1; i < hidden.size(); ++i) {
    EXPECT_EQ(0, std::memcmp(hidden[0].data(), hidden[i].data(), hidden[0].size() * sizeof(float)));
  }
}

// More rows than one chunk. Rows do not see later tokens, so a longer sequence repeats the rows of
// a shorter one that is processed in another split into chunks.
TEST(Prefill, longer_sequence_repeats_the_rows_of_a_shorter_one) {
  const auto model = load_model(fixture_model("qwen3"));
  const std::vector<std::int32_t> tokens = counting_tokens(2500, model->config.vocab_size);
  const std::vector<std::int32_t> first(tokens.begin(), tokens.begin() + 300);
  Prefill whole(model, tokens, {.dtype = StorageDType::kF32});
  Prefill part(model, first, {.dtype = StorageDType::kF32});
  whole.run_to(1, dense_attention, {});
  part.run_to(1, dense_attention, {});
  for (std::size_t i = 0; i < part.hidden().size(); ++i) {
    ASSERT_NEAR(whole.hidden()[i], part.hidden()[i], 1e-4) << i;
  }
}

TEST(Prefill, layer_input_is_rounded_to_the_storage_dtype) {
  const auto model = load_model(fixture_model("llama3_rope"));
  const std::vector<std::int32_t> tokens = counting_tokens(40, model->config.vocab_size);
  Prefill exact(model, tokens, {.dtype = StorageDType::kF32});
  Prefill rounded(model, tokens, {.dtype = StorageDType::kBF16});
  const AttentionInput a = exact.layer_input();
  const AttentionInput b = rounded.layer_input();
  ASSERT_EQ(a.q.size(), b.q.size());
  int changed = 0;
  for (std::size_t i = 0; i < a.q.size(); ++i) {
    ASSERT_EQ(round_bf16(a.q[i]), b.q[i]);
    changed += a.q[i] != b.q[i];
  }
  EXPECT_GT(changed, 0);
  for (std::size_t i = 0; i < a.k.size(); ++i) {
    ASSERT_EQ(round_bf16(a.k[i]), b.k[i]);
    ASSERT_EQ(round_bf16(a.v[i]), b.v[i]);
  }
}

TEST(Prefill, layer_input_describes_itself) {
  const auto model = load_model(fixture_model("qwen3"));
  Prefill prefill(model, counting_tokens(10, 101), {.name = "some/name"});
  prefill.run_to(2, dense_attention, {});
  const AttentionInput input = prefill.layer_input();
  EXPECT_EQ(input.name, "some/name");
  EXPECT_EQ(input.layer, 2);
  EXPECT_EQ(input.dtype, StorageDType::kBF16);
  EXPECT_EQ(input.problem.seqlen, 10);
  EXPECT_EQ(input.problem.num_q_heads, 8);
  EXPECT_EQ(input.problem.num_kv_heads, 2);
  EXPECT_EQ(input.problem.head_dim, 16);
  EXPECT_FLOAT_EQ(input.problem.softmax_scale, 0.25f);
}

TEST(Prefill, layer_input_twice_is_the_same) {
  const auto model = load_model(fixture_model("llama_tied"));
  Prefill prefill(model, counting_tokens(10, 101), {});
  const AttentionInput first = prefill.layer_input();
  EXPECT_EQ(first.q, prefill.layer_input().q);
  EXPECT_EQ(prefill.next_layer(), 0);
}

TEST(Prefill, attention_function_and_progress_see_every_layer_in_order) {
  const auto model = load_model(fixture_model("llama_tied"));
  Prefill prefill(model, counting_tokens(10, 101), {});
  std::vector<int> layers;
  std::vector<int> done;
  prefill.run_to(
      3,
      [&](int layer, const AttentionInput& input, std::vector<float>& out) {
        layers.push_back(layer);
        EXPECT_EQ(out.size(), input.q.size());
        dense_attention(layer, input, out);
      },
      [&](int finished, int total) {
        done.push_back(finished);
        EXPECT_EQ(total, 3);
      });
  EXPECT_THAT(layers, ElementsAre(0, 1, 2));
  EXPECT_THAT(done, ElementsAre(1, 2, 3));
  EXPECT_GT(prefill.times().linear_ms, 0.0);
  EXPECT_GT(prefill.times().attention_ms, 0.0);
}

TEST(Prefill, attention_output_reaches_the_residual_stream) {
  const auto model = load_model(fixture_model("llama_tied"));
  Prefill dense(model, counting_tokens(10, 101), {});
  Prefill zero(model, counting_tokens(10, 101), {});
  dense.run_to(1, dense_attention, {});
  zero.run_to(
      1, [](int, const AttentionInput&, std::vector<float>& out) { out.assign(out.size(), 0.0f); },
      {});
  EXPECT_NE(dense.hidden(), zero.hidden());
}

TEST(Prefill, token_outside_the_vocabulary_is_refused_with_its_index) {
  const auto model = load_model(fixture_model("llama_tied"));
  EXPECT_THAT(message_of<InputError>([&] {
                Prefill(model, {1, 2, 101}, {});
              }),
              HasSubstr("llama_tied: token id 101 at index 2, expected an id in [0, 101)"));
  EXPECT_THROW(Prefill(model, {-1}, {}), InputError);
  EXPECT_THROW(Prefill(model, {}, {}), InputError);
}

TEST(Prefill, nonfinite_weight_is_reported_where_it_shows) {
  auto model = std::make_shared<Model>(*load_model(fixture_model("llama_tied")));
  model->layers[1].input_norm[3] = std::numeric_limits<float>::quiet_NaN();
  Prefill prefill(model, counting_tokens(10, 101), {});
  const std::string message =
      message_of<InputError>([&] { prefill.run_to(3, dense_attention, {}); });
  EXPECT_THAT(message, HasSubstr("layer 1: tensor 'q'"));
  Prefill tolerant(model, counting_tokens(10, 101), {.allow_nonfinite = true});
  EXPECT_NO_THROW(tolerant.run_to(3, dense_attention, {}));
}

TEST(Prefill, cancelled_run_throws) {
  const auto model = load_model(fixture_model("llama_tied"));
  Prefill prefill(model, counting_tokens(10, 101), {});
  g_cancel_requested = true;
  EXPECT_THROW(prefill.run_to(3, dense_attention, {}), InterruptedError);
  g_cancel_requested = false;
}

TEST(PrefillBytes, grow_linearly_with_seqlen) {
  const ModelConfig config = read_model_config(data_folder() / "tiny-llama");
  const double at_64k = static_cast<double>(prefill_bytes(config, 65536));
  const double at_128k = static_cast<double>(prefill_bytes(config, 131072));
  EXPECT_NEAR(at_128k / at_64k, 2.0, 0.05);
  EXPECT_LT(at_128k, 2.0e9);
}

}  // namespace
}  // namespace s2o
