#include "lib/prefill/prefill_memory.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <vector>

#include "lib/prefill/replay_heads.h"
#include "lib/prefill/weight_layout.h"
#include "lib/testing/model_shapes.h"

namespace s2o {
namespace {

constexpr std::int64_t kCardBytes = 139ll << 30;

std::int64_t total_at(const ModelConfig& config, std::int64_t seqlen) {
  return plan_prefill_memory(config, seqlen, 0, kCardBytes).total_bytes;
}

TEST(PrefillMemory, parts_sum_up_and_name_the_weights) {
  const ModelConfig config = testing::llama_8b_config();
  const PrefillMemory memory = plan_prefill_memory(config, 131072, 0, kCardBytes);
  std::int64_t sum = 0;
  for (const PrefillMemory::Part& part : memory.parts) {
    EXPECT_GT(part.bytes, 0) << part.name;
    sum += part.bytes;
  }
  EXPECT_EQ(sum, memory.total_bytes);
  EXPECT_EQ(memory.free_bytes, kCardBytes);
  ASSERT_EQ(memory.parts.front().name, "weights");
  // 8,030,261,248 parameters in bf16, of which the norms are in fp32.
  EXPECT_EQ(memory.parts.front().bytes, 2 * 8030261248ll + 2 * 65 * 4096);
}

TEST(PrefillMemory, prompt_of_131072_tokens_fits_one_card_many_times) {
  const PrefillMemory memory =
      plan_prefill_memory(testing::llama_8b_config(), 131072, 0, kCardBytes);
  EXPECT_LT(memory.total_bytes, 30ll << 30);
  EXPECT_GT(memory.longest_seqlen, 1 << 20);
}

TEST(PrefillMemory, longest_seqlen_is_the_last_that_fits) {
  const ModelConfig config = testing::llama_8b_config();
  for (const std::int64_t free_bytes :
       std::vector<std::int64_t>{17ll << 30, 24ll << 30, kCardBytes}) {
    const std::int64_t longest = plan_prefill_memory(config, 1, 0, free_bytes).longest_seqlen;
    ASSERT_GT(longest, 0);
    EXPECT_LE(total_at(config, longest), free_bytes);
    EXPECT_GT(total_at(config, longest + 1), free_bytes);
  }
}

TEST(PrefillMemory, weights_alone_may_not_fit) {
  EXPECT_EQ(plan_prefill_memory(testing::llama_8b_config(), 1, 0, 8ll << 30).longest_seqlen, 0);
}

TEST(PrefillMemory, chunks_bound_what_is_wide) {
  const ModelConfig config = testing::llama_8b_config();
  const PrefillExtents at_chunk = prefill_extents(config, kPrefillChunkRows);
  const PrefillExtents beyond = prefill_extents(config, 8 * kPrefillChunkRows);
  EXPECT_EQ(at_chunk.chunk_rows, kPrefillChunkRows);
  EXPECT_EQ(beyond.rows_wide, at_chunk.rows_wide);
  EXPECT_EQ(beyond.logits, at_chunk.logits);
  EXPECT_EQ(beyond.residual, 8 * at_chunk.residual);
  EXPECT_EQ(prefill_extents(config, 100).chunk_rows, 100);
}

TEST(PrefillMemory, replays_take_one_set_of_heads_each) {
  const ModelConfig config = testing::llama_8b_config();
  const std::int64_t heads = 2ll * (32 + 2 * 8) * 128 * 1000;
  EXPECT_EQ(plan_prefill_memory(config, 1000, 4, kCardBytes).total_bytes,
            total_at(config, 1000) + 4 * heads);
}

TEST(PrefillFloor, counts_two_operations_a_weight_and_token) {
  const ModelConfig config = testing::llama_8b_config();
  // Parameters of the layers' matrices.
  const double layers = 32.0 * (6144.0 * 4096 + 4096.0 * 4096 + 3.0 * 14336 * 4096);
  const PrefillFloor floor = prefill_floor(config, 131072);
  EXPECT_DOUBLE_EQ(floor.linear_flops, 2.0 * 131072 * layers + 2.0 * 4096 * 128256);
  // 225 kB a token and layer, and the embedding.
  EXPECT_NEAR(floor.rest_bytes / (131072.0 * 32),
              2.0 * (2 * 6144 + 2 * 4096) + 24.0 * 4096 + 6.0 * 14336, 2000.0);
}

TEST(WeightLayout, arrays_are_aligned_and_disjoint) {
  ModelConfig config = testing::small_config("Qwen3ForCausalLM", 2);
  config.qkv_bias = config.output_bias = true;
  std::vector<std::byte> memory(static_cast<std::size_t>(place_weights(config, nullptr).bytes));
  const PlacedWeights weights = place_weights(config, memory.data());
  struct Range {
    const std::byte* begin;
    std::int64_t bytes;
  };
  std::vector<Range> ranges;
  const auto add = [&](const void* begin, std::int64_t bytes) {
    ASSERT_NE(begin, nullptr);
    ranges.push_back({static_cast<const std::byte*>(begin), bytes});
  };
  const auto add_linear = [&](const PlacedLinear& linear) {
    add(linear.weight, 2 * linear.out_features * linear.in_features);
    if (linear.bias != nullptr) add(linear.bias, 4 * linear.out_features);
  };
  add(weights.embedding, 2ll * config.vocab_size * config.hidden_size);
  for (const PlacedLayer& layer : weights.layers) {
    add(layer.input_norm, 4ll * config.hidden_size);
    add(layer.post_attention_norm, 4ll * config.hidden_size);
    add(layer.q_norm, 4ll * config.head_dim);
    add(layer.k_norm, 4ll * config.head_dim);
    add_linear(layer.qkv);
    add_linear(layer.o);
    add_linear(layer.gate_up);
    add_linear(layer.down);
    EXPECT_NE(layer.qkv.bias, nullptr);
    EXPECT_EQ(layer.gate_up.bias, nullptr);
  }
  add(weights.final_norm, 4ll * config.hidden_size);
  add_linear(weights.output);
  std::sort(ranges.begin(), ranges.end(),
            [](const Range& a, const Range& b) { return a.begin < b.begin; });
  for (std::size_t i = 0; i < ranges.size(); ++i) {
    EXPECT_EQ((ranges[i].begin - memory.data()) % 256, 0);
    const std::byte* const end =
        i + 1 < ranges.size() ? ranges[i + 1].begin : memory.data() + memory.size();
    EXPECT_LE(ranges[i].begin + ranges[i].bytes, end);
  }
}

TEST(WeightLayout, tied_output_is_the_embedding) {
  ModelConfig config = testing::small_config("LlamaForCausalLM", 1);
  config.tie_word_embeddings = true;
  std::vector<std::byte> memory(static_cast<std::size_t>(place_weights(config, nullptr).bytes));
  const PlacedWeights weights = place_weights(config, memory.data());
  EXPECT_EQ(weights.output.weight, weights.embedding);
  EXPECT_EQ(weights.output.out_features, config.vocab_size);
}

TEST(ReplayHeads, heads_that_share_keys_still_share_them) {
  constexpr ReplayHeads heads = {32, 8, 8, 2};  // groups of 4 on both sides
  for (int q_head = 0; q_head < 32; ++q_head) {
    const int kv_head = q_head / 4;
    EXPECT_EQ(heads.q_source(q_head) / 4, heads.kv_source(kv_head)) << q_head;
    EXPECT_EQ(heads.q_source(q_head) % 4, q_head % 4) << q_head;
  }
  constexpr ReplayHeads wider = {32, 4, 8, 4};  // groups of 8 from groups of 2
  EXPECT_EQ(wider.q_source(9), 3);
  EXPECT_EQ(wider.q_source(15), 3);
  EXPECT_EQ(wider.q_source(8), 2);
}

}  // namespace
}  // namespace s2o
