// The CPU backend of whole-model prefills, on the shipped model and on seeded weights.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>

#include "lib/core/error.h"
#include "lib/input/synthetic.h"
#include "lib/model/logits.h"
#include "lib/model/model_shapes.h"
#include "lib/model/tokens.h"
#include "lib/prefill/measures.h"
#include "lib/prefill/prefill_backend.h"
#include "lib/prefill/replay.h"
#include "lib/testing/files.h"
#include "lib/testing/inputs.h"

namespace s2o {
namespace {

using ::testing::HasSubstr;
using testing_support::data_folder;
using testing_support::message_of;

const std::shared_ptr<const Model>& tiny_llama() {
  static const std::shared_ptr<const Model> kModel = load_model(data_folder() / "tiny-llama");
  return kModel;
}

PrefillModel shipped() { return {.config = tiny_llama()->config, .weights = tiny_llama()}; }

std::vector<std::int32_t> war_and_peace(std::int64_t seqlen) {
  static const TokenFile kFile =
      read_token_file(data_folder() / "tokens/war_and_peace.safetensors");
  return select_tokens(kFile, 0, seqlen, tiny_llama()->config.vocab_size);
}

LogitDivergence compare_logits(const std::vector<float>& logits, const std::vector<float>& dense) {
  LogitDivergence divergence;
  divergence.add(logits, dense, tiny_llama()->config.vocab_size);
  return divergence;
}

// One method in every layer.
PrefillRun prefill(PrefillBackend& backend, const std::vector<std::int32_t>& tokens,
                   const std::string& method, const nlohmann::ordered_json& params,
                   const PrefillWanted& wanted = {}, int num_layers = 4, int repeats = 1) {
  const Method& found = find_method(method);
  const ParamSet settings = testing::settings_of(found, params);
  const std::vector<LayerMethod> layers(static_cast<std::size_t>(num_layers), {&found, &settings});
  return backend.run(tokens, layers, wanted, {.cpu_repeats = repeats}, {});
}

// The model card's independent forward pass (numpy) gives 3.744.
TEST(prefill_cpu, dense_loss_is_that_of_the_model_card) {
  const auto backend = make_cpu_prefill(shipped());
  const PrefillRun run = prefill(*backend, war_and_peace(1024), "dense", {}, {.losses = true});
  ASSERT_EQ(run.losses.size(), 1023u);
  EXPECT_NEAR(mean_of(run.losses), 3.744, 0.0005);
  for (const PrefillLayer& layer : run.layers) EXPECT_EQ(layer.compute_density, 1.0);
}

TEST(prefill_cpu, s2o_that_never_stops_is_dense) {
  const auto backend = make_cpu_prefill(shipped());
  const PrefillWanted wanted{.logit_positions = {0, 299, 599}};
  const std::vector<std::int32_t> tokens = war_and_peace(600);
  const PrefillRun dense = prefill(*backend, tokens, "dense", {}, wanted);
  const PrefillRun s2o = prefill(*backend, tokens, "s2o", {{"tau", 0.0}}, wanted);
  ASSERT_EQ(s2o.logits.size(), 3u * 4096u);
  const LogitDivergence divergence = compare_logits(s2o.logits, dense.logits);
  EXPECT_LT(divergence.kl_mean(), 1e-6);
  EXPECT_LT(divergence.max_abs(), 0.02);
  EXPECT_EQ(divergence.top1_agreement(), 1.0);
  const PrefillRun sparse =
      prefill(*backend, tokens, "streaming_llm", {{"sink", 0}, {"window", 64}}, wanted);
  EXPECT_GT(compare_logits(sparse.logits, dense.logits).kl_mean(), 1e-4);
  EXPECT_LT(sparse.layers[0].compute_density, 0.8);
}

TEST(prefill_cpu, logits_are_those_of_a_plain_forward_pass) {
  const auto backend = make_cpu_prefill(shipped());
  const std::vector<std::int32_t> tokens = war_and_peace(200);
  const PrefillRun run = prefill(*backend, tokens, "dense", {}, {.logit_positions = {10, 199}});
  Prefill plain(tiny_llama(), tokens, {});
  plain.run_to(4, dense_attention, {});
  // Other tiles, hence another order of sums.
  const std::vector<float> expected = compute_logits(*tiny_llama(), plain.hidden(), {10, 199});
  EXPECT_LT(compare_logits(run.logits, expected).max_abs(), 1e-3);
}

TEST(prefill_cpu, hidden_rows_give_the_logits_of_their_positions) {
  const auto backend = make_cpu_prefill(shipped());
  const PrefillRun run = prefill(*backend, war_and_peace(200), "dense", {},
                                 {.logit_positions = {10, 199}, .hidden_positions = {10, 199}});
  ASSERT_EQ(run.hidden.size(), 2u * static_cast<std::size_t>(tiny_llama()->config.hidden_size));
  std::vector<float> logits(run.logits.size());
  backend->logits_of(run.hidden, logits);
  EXPECT_EQ(logits, run.logits);
}

TEST(prefill_cpu, parts_sum_up_to_the_time_to_first_token) {
  const auto backend = make_cpu_prefill(shipped());
  const PrefillRun run = prefill(*backend, war_and_peace(300), "s2o", {{"tau", 0.1}}, {}, 4, 3);
  ASSERT_EQ(run.repeats.size(), 3u);
  for (const PrefillSplit& split : run.repeats) {
    for (const double part : {split.linear_ms, split.attention_ms, split.planning_ms}) {
      EXPECT_GT(part, 0.0);
    }
    EXPECT_GE(split.rest_ms, 0.0);
    EXPECT_NEAR(split.linear_ms + split.attention_ms + split.planning_ms + split.rest_ms,
                split.total_ms, 1e-6);
  }
  EXPECT_TRUE(run.logits.empty());
  EXPECT_TRUE(run.losses.empty());
}

TEST(prefill_cpu, layers_may_differ_and_oracles_get_their_reference) {
  const auto backend = make_cpu_prefill(shipped());
  const std::vector<std::int32_t> tokens = war_and_peace(600);
  const Method& dense = find_method("dense");
  const Method& oracle = find_method("oracle_block");
  const ParamSet none(dense.info().params);
  const ParamSet density = testing::settings_of(oracle, {{"density", 0.3}});
  const std::vector<LayerMethod> layers = {
      {&dense, &none}, {&dense, &none}, {&oracle, &density}, {&oracle, &density}};
  int last_done = 0;
  const PrefillRun run = backend->run(tokens, layers, {}, {}, [&](int done, int total) {
    EXPECT_EQ(total, 4);
    EXPECT_EQ(done, last_done + 1);
    last_done = done;
  });
  EXPECT_EQ(last_done, 4);
  EXPECT_EQ(run.layers[1].compute_density, 1.0);
  EXPECT_LT(run.layers[2].compute_density, 0.9);
}

TEST(prefill_cpu, seeded_weights_are_made_when_they_are_needed) {
  const ModelConfig shape = model_shape("tiny-llama", "test");
  const auto backend = make_cpu_prefill({.config = shape, .seed = 3});
  backend->prepare(64);
  const std::vector<std::int32_t> tokens = {1, 2, 3, 4, 5};
  const PrefillRun a = prefill(*backend, tokens, "dense", {}, {.logit_positions = {4}});
  for (const float logit : a.logits) ASSERT_TRUE(std::isfinite(logit));
  const auto again = make_cpu_prefill({.config = shape, .seed = 3});
  EXPECT_EQ(prefill(*again, tokens, "dense", {}, {.logit_positions = {4}}).logits, a.logits);
  const auto other = make_cpu_prefill({.config = shape, .seed = 4});
  EXPECT_NE(prefill(*other, tokens, "dense", {}, {.logit_positions = {4}}).logits, a.logits);
}

TEST(prefill_cpu, replay_is_what_attention_reads) {
  const ModelConfig shape = model_shape("tiny-llama", "test");
  const AttentionInput capture = testing::structured_input({512, 4, 1, 128}, "stripes");
  PrefillModel model{.config = shape, .replay = {capture}};
  const auto backend = make_prefill_backend(model, {.kind = DeviceKind::kCpu});
  const PrefillRun run =
      prefill(*backend, std::vector<std::int32_t>(512, 7), "xattention", {{"threshold", 0.1}});
  // All layers read the same tensors, whatever the weights make of the tokens.
  for (const PrefillLayer& layer : run.layers) {
    EXPECT_EQ(layer.compute_density, run.layers[0].compute_density);
    EXPECT_LT(layer.compute_density, 1.0);
  }
}

TEST(replay, heads_repeat_and_tokens_are_cut) {
  const AttentionInput capture = testing::structured_input({64, 8, 2, 16});
  ModelConfig config{.name = "m", .num_q_heads = 12, .num_kv_heads = 3, .head_dim = 16};
  const AttentionInput tiled = tile_replay(capture, config, 40);
  EXPECT_EQ(tiled.problem.seqlen, 40);
  EXPECT_EQ(tiled.problem.group_size(), 4);
  ASSERT_EQ(tiled.q.size(), 12u * 40u * 16u);
  ASSERT_EQ(tiled.k.size(), 3u * 40u * 16u);
  for (int head = 0; head < 12; ++head) {
    EXPECT_EQ(tiled.q_head(head)[39 * 16 + 3], capture.q_head(head % 8)[39 * 16 + 3]);
  }
  EXPECT_EQ(tiled.v_head(2)[5], capture.v_head(0)[5]);
  EXPECT_THAT(message_of<InputError>([&] { tile_replay(capture, config, 65); }),
              HasSubstr("64 tokens, expected at least 65"));
}

TEST(replay, other_heads_are_refused) {
  const std::vector<AttentionInput> captures = {testing::structured_input({64, 8, 2, 16})};
  ModelConfig config{.name = "m", .num_q_heads = 12, .num_kv_heads = 3, .head_dim = 32};
  EXPECT_THAT(message_of<UnsupportedError>([&] { check_replay(config, captures); }),
              HasSubstr("head_dim 16 and 4 query heads per KV head, expected 32 and 4"));
  config.head_dim = 16;
  EXPECT_NO_THROW(check_replay(config, captures));
  config.num_kv_heads = 6;
  EXPECT_THROW(check_replay(config, captures), UnsupportedError);
}

TEST(prefill_cpu, memory_says_what_is_needed_and_what_would_fit) {
  const auto backend = make_cpu_prefill(shipped());
  const PrefillMemory memory = backend->memory(1 << 20);
  std::int64_t sum = 0;
  for (const PrefillMemory::Part& part : memory.parts) sum += part.bytes;
  EXPECT_EQ(sum, memory.total_bytes);
  EXPECT_LE(backend->memory(memory.longest_seqlen).total_bytes, memory.free_bytes * 1.05);
  const std::string refusal =
      message_of<UnsupportedError>([&] { backend->prepare(std::int64_t{1} << 30); });
  EXPECT_THAT(refusal, HasSubstr("prefill of 1073741824 tokens through tiny-llama: needs"));
  EXPECT_THAT(refusal, HasSubstr("the longest prompt that fits has"));
}

TEST(make_prefill_backend, cuda_says_why_it_is_not_there) {
  try {
    make_prefill_backend(shipped(), {.kind = DeviceKind::kCuda, .index = 0});
  } catch (const UnsupportedError& error) {
    EXPECT_THAT(error.what(), HasSubstr("cuda"));
  }
  EXPECT_THROW(make_prefill_backend(shipped(), {.kind = DeviceKind::kCuda}, "ref"), ConfigError);
  EXPECT_EQ(make_prefill_backend(shipped(), {.kind = DeviceKind::kAuto}, "ref")->name(), "cpu");
}

// Heads that all visit every key, by methods that differ from head to head, are dense attention.
TEST(prefill_cpu, heads_may_do_different_things) {
  const auto backend = make_cpu_prefill(shipped());
  const std::vector<std::int32_t> tokens = war_and_peace(300);
  const std::vector<std::int64_t> last = {299};
  const PrefillRun dense = prefill(*backend, tokens, "dense", {}, {.logit_positions = last});
  const Method& none = find_method("dense");
  const ParamSet no_params(none.info().params);
  const auto setting = [](int first, int count, const std::string& method,
                          const nlohmann::ordered_json& params) {
    const Method& found = find_method(method);
    return HeadSetting{
        .q_heads = {first, count},
        .method = &found,
        .params = std::make_shared<const ParamSet>(testing::settings_of(found, params))};
  };
  // Query heads 0-3 read KV head 0, 4-7 read KV head 1.
  std::vector<LayerMethod> layers(4, {&none, &no_params});
  layers[1].heads = {setting(0, 1, "streaming_llm", {{"window", 1 << 20}}),
                     setting(1, 3, "s2o_plus", {{"tau", 0.0}}), setting(4, 4, "dense", {})};
  layers[2].heads = {setting(0, 8, "xattention", {{"threshold", 1.0}})};
  const PrefillRun mixed =
      backend->run(tokens, layers, {.logit_positions = last}, {.cpu_repeats = 1}, {});
  EXPECT_LT(compare_logits(mixed.logits, dense.logits).max_abs(), 1e-3);
  EXPECT_EQ(mixed.layers[1].planner, "mixed");
  EXPECT_NEAR(mixed.layers[1].pair_density, 1.0, 1e-9);
  layers[1].heads[2] = setting(4, 4, "streaming_llm", {{"sink", 1}, {"window", 16}});
  const PrefillRun sparse =
      backend->run(tokens, layers, {.logit_positions = last}, {.cpu_repeats = 1}, {});
  EXPECT_LT(sparse.layers[1].pair_density, 0.6);
  EXPECT_GT(compare_logits(sparse.logits, dense.logits).max_abs(), 1e-3);
}

// A group whose heads differ in tau does what groups of one tau each do.
TEST(prefill_cpu, heads_of_a_group_may_differ_in_tau) {
  const auto backend = make_cpu_prefill(shipped());
  const std::vector<std::int32_t> tokens = war_and_peace(900);
  const std::vector<std::int64_t> last = {899};
  const Method& none = find_method("dense");
  const ParamSet no_params(none.info().params);
  const Method& plus = find_method("s2o_plus");
  const auto run = [&](const std::vector<HeadSetting>& heads) {
    std::vector<LayerMethod> layers(4, {&none, &no_params});
    layers[1].heads = heads;
    return backend->run(tokens, layers, {.logit_positions = last}, {.cpu_repeats = 1}, {});
  };
  const auto group = [&](int first, int count, double tau) {
    return HeadSetting{
        .q_heads = {first, count},
        .method = &plus,
        .params = std::make_shared<const ParamSet>(testing::settings_of(plus, {{"tau", tau}}))};
  };
  const PrefillRun apart = run({group(0, 4, 0.2), group(4, 4, 0.001)});
  HeadSetting all = group(0, 8, 0.2);
  for (const double tau : {0.2, 0.2, 0.2, 0.2, 0.001, 0.001, 0.001, 0.001}) {
    all.head_params.push_back(testing::settings_of(plus, {{"tau", tau}}));
  }
  const PrefillRun together = run({all});
  EXPECT_EQ(together.logits, apart.logits);
  EXPECT_EQ(together.layers[1].pair_density, apart.layers[1].pair_density);
  EXPECT_LT(together.layers[1].pair_density, 1.0);
}

TEST(prefill_cpu, checked_rows_see_what_a_layer_loses) {
  const auto backend = make_cpu_prefill(shipped());
  const std::vector<std::int32_t> tokens = war_and_peace(300);
  PrefillWanted wanted{.check_rows = 6};
  const PrefillRun dense = prefill(*backend, tokens, "dense", {}, wanted);
  ASSERT_EQ(dense.row_errors.size(), 4u);
  ASSERT_EQ(dense.row_errors[0].size(), 6u * 8);
  for (const std::vector<RowError>& layer : dense.row_errors) {
    for (const RowError& row : layer) EXPECT_LT(row.error, 1e-9 * row.reference);
  }
  const PrefillRun sparse =
      prefill(*backend, tokens, "streaming_llm", {{"sink", 1}, {"window", 16}}, wanted);
  double error = 0.0;
  for (const RowError& row : sparse.row_errors[1]) error += row.error;
  EXPECT_GT(error, 0.0);
  EXPECT_GT(sparse.check_ms, 0.0);
}

}  // namespace
}  // namespace s2o
