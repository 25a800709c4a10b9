// Prefill on a device against the CPU forward pass.
//
// Tolerance: the CPU keeps activations in fp32; the device rounds the inputs and outputs of every
// product to bf16, at most kRoundings times a layer, each with a relative error of 2^-9 / sqrt(3)
// (uniform in half a unit). Independent errors add up by their squares; twice that is allowed.
#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <iostream>
#include <numeric>

#include "kernels/common/device_info.h"
#include "kernels/model/matrix_product.h"
#include "lib/core/error.h"
#include "lib/eval/backend_cuda.h"
#include "lib/model/logits.h"
#include "lib/model/tokens.h"
#include "lib/prefill/prefill_backend.h"
#include "lib/prefill/prefill_memory.h"
#include "lib/testing/compare.h"
#include "lib/testing/files.h"
#include "lib/testing/inputs.h"
#include "lib/testing/model_shapes.h"
#include "lib/testing/random_model.h"

namespace s2o {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using testing_support::data_folder;
using testing_support::message_of;

constexpr TimingConfig kOnce{.warmup = 1, .repeats = 1, .cpu_repeats = 1};

double tolerance(int num_layers) {
  constexpr double kRoundings = 10.0;
  return 2.0 * std::sqrt(kRoundings * (num_layers + 1) / 3.0) * 0x1.0p-9;
}

// One setting for all layers of a model.
struct Setting {
  const Method* method;
  ParamSet params;
  explicit Setting(const std::string& name, const nlohmann::ordered_json& values = {})
      : method(&find_method(name)), params(testing::settings_of(*method, values)) {}
  std::vector<LayerMethod> layers(int count) const {
    return std::vector<LayerMethod>(static_cast<std::size_t>(count), {method, &params});
  }
};

std::vector<std::int32_t> counting_tokens(std::int64_t count, int vocab_size) {
  std::vector<std::int32_t> tokens;
  for (std::int64_t i = 0; i < count; ++i) {
    tokens.push_back(static_cast<std::int32_t>(i * i % 104729 * 37 % vocab_size));
  }
  return tokens;
}

std::vector<std::int32_t> book_tokens(std::int64_t seqlen) {
  const TokenFile file = read_token_file(data_folder() / "tokens/war_and_peace.safetensors");
  return select_tokens(file, 0, seqlen, 4096);
}

// First, last, and around the edges of tiles.
std::vector<std::int64_t> some_positions(std::int64_t seqlen) {
  std::vector<std::int64_t> positions;
  for (const std::int64_t position : {0ll, 1ll, 63ll, 126ll, 127ll, 128ll, 1000ll}) {
    if (position < seqlen - 1) positions.push_back(position);
  }
  positions.push_back(seqlen - 1);
  return positions;
}

PrefillModel device_model(const std::shared_ptr<const Model>& model,
                          StorageDType dtype = StorageDType::kBF16) {
  return {.config = model->config, .weights = model, .dtype = dtype};
}

class CudaPrefillTest : public ::testing::Test {
 protected:
  void SetUp() override {
    const std::string refusal = cuda_refusal();
    if (!refusal.empty()) GTEST_SKIP() << refusal;
  }

  static PrefillRun run(PrefillBackend& backend, const std::vector<std::int32_t>& tokens,
                        const std::vector<LayerMethod>& layers) {
    PrefillWanted wanted{.logit_positions = some_positions(static_cast<int>(tokens.size())),
                         .losses = true};
    return backend.run(tokens, layers, wanted, kOnce, {});
  }
  static PrefillRun run_dense(PrefillBackend& backend, const std::vector<std::int32_t>& tokens,
                              int num_layers) {
    return run(backend, tokens, Setting("dense").layers(num_layers));
  }

  // Logits and losses of dense attention, against the CPU.
  static void expect_agreement(const std::shared_ptr<const Model>& model,
                               const std::vector<std::int32_t>& tokens,
                               StorageDType dtype = StorageDType::kBF16,
                               const std::string& kernel = "") {
    const auto backend = make_cuda_prefill(device_model(model, dtype), 0, kernel);
    const PrefillRun found = run_dense(*backend, tokens, model->config.num_layers);
    expect_cpu_results(model, tokens, dtype, found);
  }
  static void expect_cpu_results(const std::shared_ptr<const Model>& model,
                                 const std::vector<std::int32_t>& tokens, StorageDType dtype,
                                 const PrefillRun& found) {
    const auto seqlen = static_cast<std::int64_t>(tokens.size());
    Prefill cpu(model, tokens, {.dtype = dtype});
    cpu.run_to(cpu.num_layers(), dense_attention, {});
    const std::vector<float> expected =
        compute_logits(*model, cpu.hidden(), some_positions(seqlen));
    const double limit = tolerance(model->config.num_layers);
    const double error = testing::relative_l2(found.logits, expected);
    EXPECT_LE(error, limit) << seqlen << " tokens";
    ASSERT_EQ(found.losses.size(), static_cast<std::size_t>(seqlen - 1));
    if (seqlen < 2) return;
    const std::vector<double> losses = next_token_losses(*model, cpu.hidden(), tokens);
    const double mean_found =
        std::accumulate(found.losses.begin(), found.losses.end(), 0.0) / (seqlen - 1.0);
    const double mean_expected =
        std::accumulate(losses.begin(), losses.end(), 0.0) / (seqlen - 1.0);
    EXPECT_NEAR(mean_found, mean_expected, limit * std::sqrt(1.0 / (seqlen - 1.0)) * mean_expected);
    std::cout << model->config.name << ", " << seqlen << " tokens: logits differ by " << error
              << ", allowed " << limit << "; loss " << mean_found << ", CPU " << mean_expected
              << "\n";
  }
};

TEST_F(CudaPrefillTest, shipped_model_agrees_with_the_cpu) {
  const auto model = load_model(data_folder() / "tiny-llama");
  for (const std::int64_t seqlen : {512, 4096}) expect_agreement(model, book_tokens(seqlen));
}

// Of GPU tests of one machine: those that need two.
std::string refusal_of_two_gpus() {
  const auto count = query_cuda().devices.size();
  if (count < 2) return fmt::format("{} CUDA device(s) here, two are needed", count);
  const SumStatus nccl = query_sums();
  return nccl.usable ? "" : nccl.detail;
}

TEST_F(CudaPrefillTest, two_gpus_agree_with_the_cpu) {
  if (const std::string refusal = refusal_of_two_gpus(); !refusal.empty()) GTEST_SKIP() << refusal;
  const auto model = load_model(data_folder() / "tiny-llama");
  for (const std::int64_t seqlen : {1, 2, 512, 9000}) {
    PrefillModel shared = device_model(model, StorageDType::kBF16);
    shared.parallel = 2;
    const auto backend = make_cuda_prefill(std::move(shared), 0, "");
    const std::vector<std::int32_t> tokens = book_tokens(seqlen);
    expect_cpu_results(model, tokens, StorageDType::kBF16,
                       run_dense(*backend, tokens, model->config.num_layers));
  }
}

// Every method with planning on its own heads; the same seed gives the same model however it is
// cut.
TEST_F(CudaPrefillTest, two_gpus_give_what_one_gives) {
  if (const std::string refusal = refusal_of_two_gpus(); !refusal.empty()) GTEST_SKIP() << refusal;
  PrefillModel model{.config = testing::llama_8b_config(), .seed = 3};
  model.config.num_layers = 2;
  const std::vector<std::int32_t> tokens = counting_tokens(10000, model.config.vocab_size);
  const auto one = make_cuda_prefill(model, 0, "");
  model.parallel = 2;
  const auto two = make_cuda_prefill(model, 0, "");
  for (const char* name : {"dense", "s2o", "s2o_plus", "xattention"}) {
    const Setting setting(name);
    const std::vector<LayerMethod> layers = setting.layers(2);
    const PrefillRun expected = run(*one, tokens, layers);
    const PrefillRun found = run(*two, tokens, layers);
    EXPECT_LE(testing::relative_l2(found.logits, expected.logits), tolerance(2)) << name;
    const auto mean = [](const std::vector<double>& losses) {
      return std::accumulate(losses.begin(), losses.end(), 0.0) /
             static_cast<double>(losses.size());
    };
    EXPECT_NEAR(mean(found.losses), mean(expected.losses), 1e-3) << name;
    EXPECT_NEAR(found.layers[0].compute_density, expected.layers[0].compute_density, 1e-6) << name;
    EXPECT_GT(found.repeats.front().total_ms, 0.0);
  }
}

TEST_F(CudaPrefillTest, portable_kernel_agrees_with_the_cpu) {
  expect_agreement(load_model(data_folder() / "tiny-llama"), book_tokens(1000), StorageDType::kBF16,
                   "sm80");
}

// Small enough for compute-sanitizer.
using GpuSmallPrefill = CudaPrefillTest;
TEST_F(GpuSmallPrefill, every_part_of_a_layer_agrees_with_the_cpu) {
  ModelConfig config = testing::small_config("Qwen3ForCausalLM", 2);
  config.qkv_bias = config.output_bias = true;
  config.mlp_bias = true;
  const auto model = testing::random_model(config, 10, DType::kF32);
  const std::vector<std::int32_t> tokens = counting_tokens(129, config.vocab_size);
  expect_agreement(model, tokens);
  const auto backend = make_cuda_prefill(device_model(model), 0, "");
  const PrefillRun full = run(*backend, tokens, Setting("s2o", {{"tau", 0.0}}).layers(2));
  expect_cpu_results(model, tokens, StorageDType::kBF16, full);
}

TEST_F(CudaPrefillTest, llama3_rope_agrees_with_the_cpu_at_edges_of_tiles) {
  const auto model = testing::random_model(testing::small_config("LlamaForCausalLM", 3), 1);
  for (const std::int64_t seqlen : {1, 2, 127, 128, 129, 1000}) {
    expect_agreement(model, counting_tokens(seqlen, model->config.vocab_size));
  }
}

TEST_F(CudaPrefillTest, qwen3_agrees_with_the_cpu) {
  const auto model = testing::random_model(testing::small_config("Qwen3ForCausalLM", 3), 2);
  for (const std::int64_t seqlen : {1, 129, 1000}) {
    expect_agreement(model, counting_tokens(seqlen, model->config.vocab_size));
  }
}

TEST_F(CudaPrefillTest, qwen2_with_yarn_agrees_with_the_cpu) {
  const auto model = testing::random_model(testing::small_config("Qwen2ForCausalLM", 3), 11);
  ASSERT_FALSE(model->layers[0].q.bias.empty());
  ASSERT_TRUE(model->layers[0].o.bias.empty());
  for (const std::int64_t seqlen : {1, 129, 1000}) {
    expect_agreement(model, counting_tokens(seqlen, model->config.vocab_size));
  }
}

// 9 query heads, 3 KV heads of 64: rows of 576, as SmolLM2 has.
TEST_F(CudaPrefillTest, heads_that_are_no_power_of_two_agree_with_the_cpu) {
  ModelConfig config = testing::small_config("MistralForCausalLM", 3);
  config.num_q_heads = 9;
  config.num_kv_heads = 3;
  config.rope = {.type = RopeType::kLinear, .factor = 4.0f};
  const auto model = testing::random_model(config, 12);
  for (const std::int64_t seqlen : {129, 1000}) {
    expect_agreement(model, counting_tokens(seqlen, config.vocab_size));
  }
}

TEST_F(CudaPrefillTest, dynamic_rope_follows_the_length_of_the_prompt) {
  ModelConfig config = testing::small_config("LlamaForCausalLM", 2);
  config.rope = {
      .type = RopeType::kDynamic, .factor = 2.0f, .original_max_position_embeddings = 256};
  const auto model = testing::random_model(config, 13);
  const auto backend = make_cuda_prefill(device_model(model), 0, "");
  for (const std::int64_t seqlen : {1000, 200, 600}) {
    const std::vector<std::int32_t> tokens = counting_tokens(seqlen, config.vocab_size);
    expect_cpu_results(model, tokens, StorageDType::kBF16, run_dense(*backend, tokens, 2));
  }
}

TEST_F(CudaPrefillTest, prompt_that_a_sliding_window_cuts_is_refused) {
  ModelConfig config = testing::small_config("MistralForCausalLM", 1);
  config.sliding_window = 64;
  const auto model = testing::random_model(config, 14);
  expect_agreement(model, counting_tokens(64, config.vocab_size));
  const auto backend = make_cuda_prefill(device_model(model), 0, "");
  EXPECT_THAT(message_of<UnsupportedError>(
                  [&] { run_dense(*backend, counting_tokens(65, config.vocab_size), 1); }),
              HasSubstr("sliding_window"));
}

TEST_F(CudaPrefillTest, layer_inputs_agree_with_the_cpu) {
  const auto model = testing::random_model(testing::small_config("Qwen2ForCausalLM", 3), 15);
  const std::vector<std::int32_t> tokens = counting_tokens(300, model->config.vocab_size);
  const auto backend = make_cuda_prefill(device_model(model), 0, "");
  // Room for a longer prompt, so that a head does not end where its buffer does.
  backend->prepare(500);
  const PrefillRun found =
      backend->run(tokens, Setting("dense").layers(3), {.layers = {0, 2}}, kOnce, {});
  ASSERT_EQ(found.layer_inputs.size(), 2u);
  Prefill cpu(model, tokens, {});
  for (const AttentionInput& input : found.layer_inputs) {
    cpu.run_to(input.layer, dense_attention, {});
    const AttentionInput expected = cpu.layer_input();
    EXPECT_EQ(input.problem.seqlen, 300);
    EXPECT_EQ(input.problem.softmax_scale, expected.problem.softmax_scale);
    EXPECT_LE(testing::relative_l2(input.q, expected.q), tolerance(3)) << input.layer;
    EXPECT_LE(testing::relative_l2(input.k, expected.k), tolerance(3)) << input.layer;
    EXPECT_LE(testing::relative_l2(input.v, expected.v), tolerance(3)) << input.layer;
  }
}

TEST_F(CudaPrefillTest, biases_are_added) {
  ModelConfig config = testing::small_config("LlamaForCausalLM", 2);
  config.qkv_bias = config.output_bias = true;
  config.mlp_bias = true;
  config.tie_word_embeddings = true;
  const auto model = testing::random_model(config, 3);
  expect_agreement(model, counting_tokens(300, config.vocab_size));
}

TEST_F(CudaPrefillTest, other_weight_and_storage_types_agree_with_the_cpu) {
  const ModelConfig config = testing::small_config("LlamaForCausalLM", 2);
  const std::vector<std::int32_t> tokens = counting_tokens(300, config.vocab_size);
  expect_agreement(testing::random_model(config, 4, DType::kF32), tokens);
  expect_agreement(testing::random_model(config, 5, DType::kF16), tokens, StorageDType::kF16);
}

// One layer: the CPU attends to 33,000 tokens as well.
TEST_F(CudaPrefillTest, prompt_longer_than_a_chunk_agrees_with_the_cpu) {
  ModelConfig config = testing::small_config("LlamaForCausalLM", 1);
  config.num_q_heads = 2;
  config.num_kv_heads = 1;
  const auto model = testing::random_model(config, 6);
  expect_agreement(model, counting_tokens(kPrefillChunkRows + 129, config.vocab_size));
}

// Fewer rows of a product are other tiles of it, so that sums may be in another order.
TEST_F(CudaPrefillTest, hidden_rows_give_the_logits_of_their_positions) {
  const auto model = load_model(data_folder() / "tiny-llama");
  const auto backend = make_cuda_prefill(device_model(model), 0, "");
  const std::vector<std::int32_t> tokens = book_tokens(3000);
  PrefillWanted wanted{.logit_positions = some_positions(3000),
                       .hidden_positions = some_positions(3000)};
  const PrefillRun kept = backend->run(tokens, Setting("dense").layers(4), wanted, kOnce, {});
  run_dense(*backend, book_tokens(777), 4);
  std::vector<float> logits(kept.logits.size());
  backend->logits_of(kept.hidden, logits);
  EXPECT_LT(testing::relative_l2(logits, kept.logits), 1e-4);
}

TEST_F(CudaPrefillTest, runs_are_bit_identical) {
  const auto model = load_model(data_folder() / "tiny-llama");
  const auto backend = make_cuda_prefill(device_model(model), 0, "");
  const std::vector<std::int32_t> tokens = book_tokens(3000);
  const Setting s2o("s2o");
  const PrefillRun first = run(*backend, tokens, s2o.layers(4));
  // Another prompt and method in between.
  run_dense(*backend, book_tokens(777), 4);
  const PrefillRun second = run(*backend, tokens, s2o.layers(4));
  EXPECT_EQ(first.logits, second.logits);
  EXPECT_EQ(first.losses, second.losses);
  for (std::size_t i = 0; i < 4; ++i) {
    EXPECT_EQ(first.layers[i].compute_density, second.layers[i].compute_density);
  }
}

// Order of keys and accumulation differ, nothing else.
TEST_F(CudaPrefillTest, every_method_with_a_full_budget_agrees_with_dense) {
  const auto model = load_model(data_folder() / "tiny-llama");
  const auto backend = make_cuda_prefill(device_model(model), 0, "");
  const std::vector<std::int32_t> tokens = book_tokens(1500);
  const PrefillRun dense = run_dense(*backend, tokens, 4);
  for (const Method* method : all_methods()) {
    const MethodInfo& info = method->info();
    const Setting setting(info.name, info.full_budget.params);
    if (info.is_oracle) {
      const std::string message =
          message_of<UnsupportedError>([&] { run(*backend, tokens, setting.layers(4)); });
      EXPECT_THAT(message, AllOf(HasSubstr(info.name), HasSubstr("dense output")));
      continue;
    }
    const PrefillRun full = run(*backend, tokens, setting.layers(4));
    const double error = testing::relative_l2(full.logits, dense.logits);
    EXPECT_LE(error, tolerance(4)) << info.name;
    for (const PrefillLayer& layer : full.layers) {
      EXPECT_DOUBLE_EQ(layer.pair_density, 1.0) << info.name;
    }
    if (full.layers[0].planner == "cpu") {
      // Copies of Q, K and V alone take longer.
      EXPECT_GT(full.repeats[0].planning_ms, 0.1) << info.name;
    }
    std::cout << info.name << ", planner " << full.layers[0].planner
              << ": logits differ from dense by " << error << "\n";
  }
}

TEST_F(CudaPrefillTest, layers_may_have_methods_of_their_own) {
  const auto model = load_model(data_folder() / "tiny-llama");
  const auto backend = make_cuda_prefill(device_model(model), 0, "");
  const Setting dense("dense");
  const Setting sparse("s2o", {{"tau", 0.3}});
  std::vector<LayerMethod> layers = sparse.layers(4);
  layers[0] = layers[2] = {dense.method, &dense.params};
  const PrefillRun found = run(*backend, book_tokens(4096), layers);
  EXPECT_DOUBLE_EQ(found.layers[0].compute_density, 1.0);
  EXPECT_DOUBLE_EQ(found.layers[2].compute_density, 1.0);
  EXPECT_LT(found.layers[1].compute_density, 0.9);
  EXPECT_LT(found.layers[3].compute_density, 0.9);
  EXPECT_EQ(found.layers[0].planner, "none");
  EXPECT_EQ(found.layers[1].planner, "cuda");
}

TEST_F(CudaPrefillTest, replayed_heads_take_the_place_of_the_layers_own) {
  const auto model = testing::random_model(testing::small_config("LlamaForCausalLM", 3), 7);
  const std::vector<std::int32_t> tokens = counting_tokens(500, model->config.vocab_size);
  // The same model, but for projections that yield nonsense.
  const auto broken = testing::random_model(model->config, 8);
  auto mixed = std::make_shared<Model>(*model);
  PrefillModel replaying = device_model(mixed);
  Prefill cpu(model, tokens, {});
  while (cpu.next_layer() < cpu.num_layers()) {
    const std::size_t layer = static_cast<std::size_t>(cpu.next_layer());
    replaying.replay.push_back(cpu.layer_input());
    mixed->layers[layer].q = broken->layers[layer].q;
    mixed->layers[layer].k = broken->layers[layer].k;
    mixed->layers[layer].v = broken->layers[layer].v;
    cpu.finish_layer(replaying.replay.back(), dense_attention);
  }
  const auto backend = make_cuda_prefill(std::move(replaying), 0, "");
  expect_cpu_results(model, tokens, StorageDType::kBF16, run_dense(*backend, tokens, 3));
  // A shorter prompt replays the leading tokens.
  const std::vector<std::int32_t> fewer(tokens.begin(), tokens.begin() + 200);
  expect_cpu_results(model, fewer, StorageDType::kBF16, run_dense(*backend, fewer, 3));
  EXPECT_THROW(run_dense(*backend, counting_tokens(501, 509), 3), InputError);
}

TEST_F(CudaPrefillTest, seeded_weights_have_times_that_sum_up) {
  ModelConfig config = testing::small_config("LlamaForCausalLM", 2);
  const auto backend = make_cuda_prefill({.config = config, .seed = 5}, 0, "");
  const TimingConfig timing{.warmup = 2, .repeats = 3, .cpu_repeats = 1};
  const std::vector<std::int32_t> tokens = counting_tokens(2000, config.vocab_size);
  int last_done = 0;
  const Setting dense("dense");
  const PrefillRun found =
      backend->run(tokens, dense.layers(2), {}, timing, [&](int done, int total) {
        EXPECT_EQ(total, 10);
        EXPECT_GT(done, last_done);
        last_done = done;
      });
  EXPECT_EQ(last_done, 10);
  ASSERT_EQ(found.repeats.size(), 3u);
  for (const PrefillSplit& split : found.repeats) {
    EXPECT_GT(split.linear_ms, 0.0);
    EXPECT_GT(split.attention_ms, 0.0);
    EXPECT_GE(split.planning_ms, 0.0);
    EXPECT_GT(split.rest_ms, 0.0);
    EXPECT_NEAR(split.total_ms,
                split.linear_ms + split.attention_ms + split.planning_ms + split.rest_ms, 1e-9);
  }
}

TEST_F(CudaPrefillTest, no_more_memory_is_taken_than_was_planned) {
  ModelConfig config = testing::small_config("LlamaForCausalLM", 2);
  config.vocab_size = 32000;
  const auto backend = make_cuda_prefill({.config = config, .seed = 5}, 0, "");
  const PrefillMemory plan = backend->memory(100000);
  backend->run(counting_tokens(100000, config.vocab_size), Setting("dense").layers(2), {}, kOnce,
               {});
  const std::int64_t taken = plan.free_bytes - free_device_bytes();
  EXPECT_GT(taken, plan.total_bytes / 4);
  EXPECT_LE(taken, plan.total_bytes);
}

TEST_F(CudaPrefillTest, what_cannot_run_is_refused_with_reasons) {
  const auto backend = make_cuda_prefill({.config = testing::llama_8b_config(), .seed = 1}, 0, "");
  const PrefillMemory plan = backend->memory(1 << 30);
  const std::string message = message_of<UnsupportedError>([&] { backend->prepare(1 << 30); });
  EXPECT_THAT(message, AllOf(HasSubstr(std::to_string(plan.total_bytes) + " bytes"),
                             HasSubstr(std::to_string(plan.free_bytes) + " bytes"),
                             HasSubstr(std::to_string(plan.longest_seqlen) + " tokens")));

  PrefillModel fp32{.config = testing::llama_8b_config(), .dtype = StorageDType::kF32};
  EXPECT_THAT(message_of<UnsupportedError>([&] { make_cuda_prefill(fp32, 0, ""); }),
              HasSubstr("fp32"));
  PrefillModel odd{.config = testing::llama_8b_config()};
  odd.config.head_dim = 80;
  EXPECT_THAT(message_of<UnsupportedError>([&] { make_cuda_prefill(odd, 0, ""); }),
              HasSubstr("80"));
  PrefillModel elsewhere{.config = testing::llama_8b_config(), .cublas_folder = "/nowhere"};
  EXPECT_THAT(message_of<UnsupportedError>([&] { make_cuda_prefill(elsewhere, 0, ""); }),
              AllOf(HasSubstr("/nowhere"), HasSubstr("cuBLAS")));
}

TEST_F(CudaPrefillTest, bad_tokens_and_hidden_states_are_named) {
  ModelConfig config = testing::small_config("LlamaForCausalLM", 2);
  const auto model = testing::random_model(config, 9, DType::kF32);
  std::vector<std::int32_t> tokens(200, 3);
  tokens[150] = 7;
  // An embedding row that is not finite.
  const float infinity = HUGE_VALF;
  std::memcpy(const_cast<std::byte*>(model->embedding.data.get()) + 7ll * config.hidden_size * 4,
              &infinity, sizeof(infinity));
  const auto backend = make_cuda_prefill(device_model(model), 0, "");
  EXPECT_THAT(message_of<InputError>([&] { run_dense(*backend, tokens, 2); }),
              AllOf(HasSubstr("token 150"), HasSubstr("embedding")));
  tokens[20] = config.vocab_size;
  EXPECT_THAT(message_of<InputError>([&] { run_dense(*backend, tokens, 2); }),
              AllOf(HasSubstr("index 20"), HasSubstr("509")));
}

// No device is needed for this one.
TEST(MatrixProducts, missing_library_is_a_clear_refusal) {
  EXPECT_THAT(
      message_of<UnsupportedError>([] { MatrixProducts("/nowhere"); }),
      AllOf(HasSubstr("cuBLAS"), HasSubstr("/nowhere/libcublasLt.so"), HasSubstr("--cublas")));
}

// The same rows as the CPU, of the same method: errors differ by rounding to bf16 alone. Groups of
// heads run in streams of their own.
TEST_F(CudaPrefillTest, groups_of_heads_and_checked_rows_agree_with_the_cpu) {
  const auto model = load_model(data_folder() / "tiny-llama");
  const std::vector<std::int32_t> tokens = book_tokens(1500);
  const Setting dense("dense");
  const Setting window("streaming_llm", {{"sink", 1}, {"window", 256}});
  const Setting rows("s2o_plus", {{"tau", 0.01}});
  const auto heads = [](int first, int count, const Setting& setting) {
    return HeadSetting{.q_heads = {first, count},
                       .method = setting.method,
                       .params = std::make_shared<const ParamSet>(setting.params)};
  };
  std::vector<LayerMethod> layers = dense.layers(4);
  layers[1].heads = {heads(0, 1, window), heads(1, 2, rows), heads(3, 1, window),
                     heads(4, 4, dense)};
  layers[2].heads = {heads(0, 8, rows)};
  for (const double tau : {0.1, 0.03, 0.01, 0.003, 0.001, 0.0003, 0.0001, 0.03}) {
    layers[2].heads[0].head_params.push_back(Setting("s2o_plus", {{"tau", tau}}).params);
  }
  layers[3].heads = {heads(0, 4, rows), heads(4, 2, window), heads(6, 2, rows)};
  const PrefillWanted wanted{.logit_positions = {1499}, .check_rows = 16};
  const PrefillRun found =
      make_cuda_prefill(device_model(model), 0, "")->run(tokens, layers, wanted, kOnce, {});
  const PrefillRun expected =
      make_cpu_prefill(device_model(model))->run(tokens, layers, wanted, kOnce, {});
  EXPECT_LE(testing::relative_l2(found.logits, expected.logits), tolerance(4));
  ASSERT_EQ(found.row_errors.size(), 4u);
  for (std::size_t layer = 0; layer < 4; ++layer) {
    EXPECT_NEAR(found.layers[layer].pair_density, expected.layers[layer].pair_density, 0.01);
    RowError device, host;
    for (std::size_t i = 0; i < found.row_errors[layer].size(); ++i) {
      device.error += found.row_errors[layer][i].error;
      device.reference += found.row_errors[layer][i].reference;
      host.error += expected.row_errors[layer][i].error;
      host.reference += expected.row_errors[layer][i].reference;
    }
    EXPECT_NEAR(device.reference / host.reference, 1.0, 0.05) << "layer " << layer;
    const double on_device = std::sqrt(device.error / device.reference);
    const double on_host = std::sqrt(host.error / host.reference);
    EXPECT_NEAR(on_device, on_host, 0.006 + 0.1 * on_host) << "layer " << layer;
  }
}

}  // namespace
}  // namespace s2o
