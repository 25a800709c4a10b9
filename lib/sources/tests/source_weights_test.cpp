#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "lib/core/error.h"
#include "lib/model/prefill.h"
#include "lib/model/tests/model_folder.h"
#include "lib/model/tokens.h"
#include "lib/sources/source.h"

namespace s2o {
namespace {

using nlohmann::ordered_json;
using testing::HasSubstr;
using testing_support::fixture_model;
using testing_support::message_of;

const char* const kPath = "runs.json: inputs[0]";

SourceOptions options_here() { return {.base_folder = fixture_model(""), .seed = 0}; }

ordered_json entry_of(ordered_json changes = ordered_json::object()) {
  ordered_json entry = {{"source", "weights"},
                        {"model", "llama3_rope"},
                        {"tokens", "llama3_rope/expected.safetensors"},
                        {"seqlen", 64}};
  entry.update(changes);
  return entry;
}

std::vector<InputCell> expand(const ordered_json& changes = ordered_json::object()) {
  return expand_weights_source(entry_of(changes), kPath, options_here());
}

// The layer as a prefill of its own sees it.
AttentionInput direct_input(int layer, std::int64_t offset, std::int64_t seqlen) {
  const auto model = load_model(fixture_model("llama3_rope"));
  const TokenFile file = read_token_file(fixture_model("llama3_rope") / "expected.safetensors");
  Prefill prefill(model, select_tokens(file, offset, seqlen, model->config.vocab_size), {});
  prefill.run_to(layer, dense_attention, {});
  return prefill.layer_input();
}

TEST(ExpandWeightsSource, cells_are_the_product_of_seqlens_and_ascending_layers) {
  const std::vector<InputCell> cells = expand({{"seqlen", {64, 32}}, {"layers", {2, 0}}});
  ASSERT_EQ(cells.size(), 4u);
  const std::vector<std::pair<std::int64_t, int>> expected = {{64, 0}, {64, 2}, {32, 0}, {32, 2}};
  for (std::size_t i = 0; i < cells.size(); ++i) {
    EXPECT_EQ(cells[i].name, "llama3_rope/expected");
    EXPECT_EQ(cells[i].seqlen, expected[i].first);
    EXPECT_EQ(cells[i].layer, expected[i].second);
  }
}

TEST(ExpandWeightsSource, no_layers_means_all) {
  EXPECT_EQ(expand().size(), 3u);
  EXPECT_EQ(expand({{"name", "mine"}})[2].name, "mine");
}

TEST(ExpandWeightsSource, load_in_any_order_equals_a_prefill_of_its_own) {
  const std::vector<InputCell> cells = expand({{"seqlen", {64, 32}}, {"offset", 7}});
  // In order, then backwards (starts again), across seqlens, and the same cell twice.
  for (const std::size_t i : {0u, 1u, 2u, 3u, 5u, 4u, 1u, 1u, 0u}) {
    SCOPED_TRACE(i);
    const AttentionInput found = cells[i].load();
    const AttentionInput expected = direct_input(cells[i].layer, 7, cells[i].seqlen);
    EXPECT_EQ(found.name, "llama3_rope/expected");
    EXPECT_EQ(found.layer, cells[i].layer);
    EXPECT_EQ(found.q, expected.q);
    EXPECT_EQ(found.k, expected.k);
    EXPECT_EQ(found.v, expected.v);
  }
}

TEST(ExpandWeightsSource, dtype_of_the_run_reaches_the_input) {
  SourceOptions options = options_here();
  options.dtype = StorageDType::kF32;
  const AttentionInput input = expand_weights_source(entry_of(), kPath, options)[0].load();
  EXPECT_EQ(input.dtype, StorageDType::kF32);
  EXPECT_NE(input.q, direct_input(0, 0, 64).q);
}

TEST(ExpandWeightsSource, wrong_key_or_value_is_a_config_error_with_its_place) {
  const std::vector<std::pair<ordered_json, std::string>> cases = {
      {{{"layer", 1}}, "inputs[0].layer: unknown key, did you mean 'layers'?"},
      {{{"layers", {0, 3}}}, "inputs[0].layers: found 3, expected layers in [0, 3)"},
      {{{"layers", {-1}}}, "inputs[0].layers: found -1"},
      {{{"layers", {1, 1}}}, "occurs twice"},
      {{{"layers", ordered_json::array()}}, "inputs[0].layers: empty list"},
      {{{"seqlen", 0}}, "inputs[0].seqlen"},
      {{{"seqlen", "long"}}, "inputs[0].seqlen"},
      {{{"offset", -1}}, "inputs[0].offset"},
      {{{"model", 3}}, "inputs[0].model"},
  };
  for (const auto& [changes, expected] : cases) {
    EXPECT_THAT(message_of<ConfigError>([&] { expand(changes); }), HasSubstr(expected));
  }
  for (const char* key : {"model", "tokens", "seqlen"}) {
    ordered_json entry = entry_of();
    entry.erase(key);
    EXPECT_THAT(
        message_of<ConfigError>([&] { expand_weights_source(entry, kPath, options_here()); }),
        HasSubstr(key));
  }
}

TEST(ExpandWeightsSource, broken_files_are_input_errors_before_anything_is_loaded) {
  EXPECT_THAT(message_of<InputError>([] { expand({{"model", "nowhere"}}); }), HasSubstr("nowhere"));
  EXPECT_THAT(message_of<InputError>([] {
                expand({{"tokens", "nothing.txt"}});
              }),
              HasSubstr("nothing.txt"));
  EXPECT_THAT(message_of<InputError>([] {
                expand({{"seqlen", {16, 100}}});
              }),
              HasSubstr("80 token ids, expected at least offset 0 + seqlen 100"));
  EXPECT_THAT(message_of<InputError>([] {
                expand({{"seqlen", 16}, {"offset", 70}});
              }),
              HasSubstr("offset 70"));
}

}  // namespace
}  // namespace s2o
