#include "lib/prefill/capture.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <vector>

#include "lib/core/error.h"
#include "lib/input/capture_file.h"
#include "lib/model/tests/model_folder.h"
#include "lib/model/tokens.h"

namespace s2o {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing_support::fixture_model;
using testing_support::message_of;
using testing_support::TempFolder;

CaptureOptions options_for(const std::filesystem::path& out) {
  CaptureOptions options;
  options.model = fixture_model("qwen3");
  options.tokens = fixture_model("qwen3") / "expected.safetensors";
  options.seqlen = 32;
  options.layers = {{2}, {0}};
  options.device.kind = DeviceKind::kCpu;
  options.out = out;
  return options;
}

TEST(Capture, file_holds_the_layer_inputs_of_a_prefill) {
  const TempFolder folder;
  for (const char* name : {"a.safetensors", "a.h5"}) {
    for (const StorageDType dtype : {StorageDType::kF32, StorageDType::kBF16, StorageDType::kF16}) {
      SCOPED_TRACE(std::string(name) + " " + std::string(storage_dtype_name(dtype)));
      CaptureOptions options = options_for(folder / name);
      options.offset = 5;
      options.dtype = dtype;
      const CaptureSummary summary = capture(options);
      EXPECT_THAT(summary.layers, ElementsAre(0, 2));
      EXPECT_EQ(summary.seqlen, 32);
      EXPECT_EQ(summary.file_bytes, std::filesystem::file_size(options.out));

      const auto file = open_tensor_file(options.out);
      EXPECT_THAT(captured_layers(*file), ElementsAre(0, 2));
      const auto model = load_model(options.model);
      Prefill prefill(model, select_tokens(read_token_file(options.tokens), 5, 32, 101),
                      {.dtype = dtype});
      prefill.run_to(2, dense_attention, {});
      const AttentionInput expected = prefill.layer_input();
      EXPECT_EQ(file->read(capture_tensor_name(2, "q")).to_float(), expected.q);
      EXPECT_EQ(file->read(capture_tensor_name(2, "k")).to_float(), expected.k);
      EXPECT_EQ(file->read(capture_tensor_name(2, "v")).to_float(), expected.v);
    }
  }
}

TEST(Capture, defaults_are_all_layers_and_all_tokens) {
  const TempFolder folder;
  CaptureOptions options = options_for(folder / "a.safetensors");
  options.layers.clear();
  options.seqlen = 0;
  options.offset = 10;
  const CaptureSummary summary = capture(options);
  EXPECT_THAT(summary.layers, ElementsAre(0, 1, 2));
  EXPECT_EQ(summary.seqlen, 70);
  const auto file = open_tensor_file(options.out);
  EXPECT_EQ(file->metadata().at("model"), "qwen3");
  EXPECT_EQ(file->metadata().at("offset"), "10");
}

TEST(Capture, one_kv_group_is_a_part_of_all_heads) {
  const TempFolder folder;
  CaptureOptions options = options_for(folder / "all.safetensors");
  capture(options);
  const auto all = open_tensor_file(options.out);
  options.out = folder / "one.safetensors";
  options.layers = {{2, 1}, {0}};
  capture(options);
  const auto one = open_tensor_file(options.out);
  EXPECT_EQ(one->read("layer.0.q").to_float(), all->read("layer.0.q").to_float());
  // 8 query heads of 16, 2 KV heads: group 1 is the second half.
  const HostTensor q = one->read("layer.2.q");
  EXPECT_THAT(q.info.shape, ElementsAre(4, 32, 16));
  EXPECT_THAT(one->read("layer.2.v").info.shape, ElementsAre(1, 32, 16));
  const std::vector<float> heads = all->read("layer.2.q").to_float();
  EXPECT_EQ(q.to_float(), std::vector<float>(heads.begin() + 4 * 32 * 16, heads.end()));
  const std::vector<float> keys = all->read("layer.2.k").to_float();
  EXPECT_EQ(one->read("layer.2.k").to_float(),
            std::vector<float>(keys.begin() + 32 * 16, keys.end()));
}

TEST(Capture, logits_are_those_of_the_last_positions) {
  const TempFolder folder;
  CaptureOptions options = options_for(folder / "a.safetensors");
  options.layers.clear();
  options.seqlen = 0;
  options.logit_rows = 3;
  options.dtype = StorageDType::kF32;
  EXPECT_TRUE(capture(options).layers.empty());
  const std::vector<float> found = open_tensor_file(options.out)->read("logits").to_float();
  const std::vector<float> all =
      open_tensor_file(options.tokens)->read("logits").to_float();  // of transformers
  ASSERT_EQ(found.size(), 3u * 101u);
  for (std::size_t i = 0; i < found.size(); ++i) {
    EXPECT_NEAR(found[i], all[all.size() - found.size() + i], 1e-4) << i;
  }
}

TEST(Capture, layers_are_numbers_or_a_kv_group_of_one) {
  EXPECT_EQ(parse_captured_layer("12", "layers").layer, 12);
  EXPECT_EQ(parse_captured_layer("12", "layers").kv_group, -1);
  EXPECT_EQ(parse_captured_layer("3:1", "layers").kv_group, 1);
  for (const char* text : {"", "x", "3:", "3:x", ":1", "3:-1", "3:1:2", "3 ", "99999999999"}) {
    EXPECT_THAT(message_of<ConfigError>([&] { parse_captured_layer(text, "--layers"); }),
                HasSubstr("--layers: found"))
        << text;
  }
}

TEST(Capture, progress_ends_at_the_last_layer_asked_for) {
  const TempFolder folder;
  CaptureOptions options = options_for(folder / "a.safetensors");
  options.layers = {{1}};
  std::vector<std::pair<int, int>> calls;
  options.progress = [&](int done, int total) { calls.emplace_back(done, total); };
  capture(options);
  EXPECT_THAT(calls, ElementsAre(std::pair(1, 2), std::pair(2, 2)));
}

TEST(Capture, wrong_option_is_refused_and_leaves_no_file) {
  const TempFolder folder;
  const auto refused = [&](auto&& change, const char* expected) {
    CaptureOptions options = options_for(folder / "a.safetensors");
    change(options);
    EXPECT_THAT(message_of<Error>([&] { capture(options); }), HasSubstr(expected));
  };
  refused([](CaptureOptions& o) { o.layers = {{0}, {3}}; }, "found 3, expected layers in [0, 3)");
  refused([](CaptureOptions& o) { o.layers = {{-1}}; }, "found -1");
  refused([](CaptureOptions& o) { o.layers = {{1}, {1, 0}}; }, "1 occurs twice");
  refused(
      [](CaptureOptions& o) {
        o.layers = {{1, 2}};
      },
      "found 1:2, expected a KV group in [0, 2)");
  refused([](CaptureOptions& o) { o.logit_rows = 33; }, "found 33, expected a number of rows");
  refused([](CaptureOptions& o) { o.seqlen = 81; }, "80 token ids");
  refused([](CaptureOptions& o) { o.seqlen = -1; }, "80 token ids");
  refused([](CaptureOptions& o) { o.seqlen = 0, o.offset = 80; }, "80 token ids");
  refused([](CaptureOptions& o) { o.model = "/nowhere"; }, "/nowhere: no such folder");
  refused([](CaptureOptions& o) { o.tokens = "/nowhere.txt"; }, "/nowhere.txt");
  refused([](CaptureOptions& o) { o.out = "/nowhere/a.safetensors"; }, "/nowhere");
  refused([&](CaptureOptions& o) { o.out = folder / "a.xyz"; }, "a.xyz: unknown file format");
  EXPECT_TRUE(std::filesystem::is_empty(folder.path()));
}

}  // namespace
}  // namespace s2o
