#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include "kernels/common/bf16.h"
#include "lib/core/error.h"
#include "lib/core/strict_json.h"
#include "lib/input/capture_file.h"
#include "lib/sources/source.h"
#include "lib/testing/files.h"

namespace s2o {
namespace {

using ::testing::HasSubstr;
using ::testing::StartsWith;
using testing_support::make_tensor;
using testing_support::message_of;
using testing_support::TempFolder;
using testing_support::write_file;

using Shape = std::vector<std::int64_t>;

constexpr int kQHeads = 4;
constexpr int kKvHeads = 2;
constexpr std::int64_t kSeqlen = 6;
constexpr int kHeadDim = 8;

// A value that tells tensor, head, token and dimension apart, exact in bf16 and fp16.
float value_at(int tensor, std::int64_t head, std::int64_t token, std::int64_t dim) {
  return static_cast<float>((tensor * 61 + head * 31 + token * 7 + dim) % 127 - 60);
}

std::vector<float> values_of(int tensor, int heads, bool token_major = false) {
  std::vector<float> values;
  for (std::int64_t i = 0; i < heads * kSeqlen; ++i) {
    const std::int64_t head = token_major ? i % heads : i / kSeqlen;
    const std::int64_t token = token_major ? i / heads : i % kSeqlen;
    for (int dim = 0; dim < kHeadDim; ++dim) values.push_back(value_at(tensor, head, token, dim));
  }
  return values;
}

HostTensor stored(const std::string& name, DType dtype, Shape shape,
                  const std::vector<float>& values) {
  std::string bytes;
  for (const float value : values) {
    if (dtype == DType::kF32) bytes += testing_support::bytes_of(value);
    if (dtype == DType::kF16) bytes += testing_support::bytes_of(float_to_fp16(value));
    if (dtype == DType::kBF16) bytes += testing_support::bytes_of(float_to_bf16(value));
  }
  return make_tensor(name, dtype, std::move(shape), bytes);
}

HostTensor zeros(const std::string& name, Shape shape, DType dtype = DType::kBF16) {
  std::size_t bytes = dtype_bytes(dtype);
  for (const std::int64_t extent : shape) bytes *= static_cast<std::size_t>(extent);
  return make_tensor(name, dtype, std::move(shape), std::string(bytes, '\0'));
}

AttentionInput sample_input(int layer, StorageDType dtype) {
  AttentionInput input;
  input.name = "sample";
  input.layer = layer;
  input.dtype = dtype;
  input.problem = {
      .seqlen = kSeqlen, .num_q_heads = kQHeads, .num_kv_heads = kKvHeads, .head_dim = kHeadDim};
  input.q = values_of(layer, kQHeads);
  input.k = values_of(layer + 1, kKvHeads);
  input.v = values_of(layer + 2, kKvHeads);
  return input;
}

class DumpSource : public ::testing::Test {
 protected:
  void write(const std::string& name, const std::vector<HostTensor>& tensors) {
    format_of(name).write(folder_ / name, tensors);
  }
  void write_qkv(const std::string& name, const Shape& q, const Shape& k, const Shape& v) {
    write(name, {zeros("q", q), zeros("k", k), zeros("v", v)});
  }
  std::vector<InputCell> expand(const std::string& json) {
    return expand_source(parse_strict_json(json), "runs.json: inputs[0]", options_);
  }
  std::string input_error(const std::string& json) {
    return message_of<InputError>([&] { expand(json); });
  }
  std::string config_error(const std::string& json) {
    return message_of<ConfigError>([&] { expand(json); });
  }
  void expect_sample(const AttentionInput& input, int first_tensor = 0) {
    EXPECT_EQ(input.problem.seqlen, kSeqlen);
    EXPECT_EQ(input.problem.num_q_heads, kQHeads);
    EXPECT_EQ(input.problem.num_kv_heads, kKvHeads);
    EXPECT_EQ(input.problem.head_dim, kHeadDim);
    EXPECT_FLOAT_EQ(input.problem.softmax_scale, 1.0f / std::sqrt(8.0f));
    EXPECT_EQ(input.q, values_of(first_tensor, kQHeads));
    EXPECT_EQ(input.k, values_of(first_tensor + 1, kKvHeads));
    EXPECT_EQ(input.v, values_of(first_tensor + 2, kKvHeads));
  }

  TempFolder folder_{testing_support::fast_temp_folder()};
  SourceOptions options_{.base_folder = folder_.path()};
};

TEST_F(DumpSource, every_layout_and_dtype_becomes_head_major) {
  for (const DType dtype : {DType::kF32, DType::kF16, DType::kBF16}) {
    for (const bool token_major : {false, true}) {
      for (const bool has_batch : {false, true}) {
        for (const char* name : {"d.safetensors", "d.h5"}) {
          const auto shape = [&](int heads) {
            Shape extents =
                token_major ? Shape{kSeqlen, heads, kHeadDim} : Shape{heads, kSeqlen, kHeadDim};
            if (has_batch) extents.insert(extents.begin(), 1);
            return extents;
          };
          write(name, {stored("q", dtype, shape(kQHeads), values_of(0, kQHeads, token_major)),
                       stored("k", dtype, shape(kKvHeads), values_of(1, kKvHeads, token_major)),
                       stored("v", dtype, shape(kKvHeads), values_of(2, kKvHeads, token_major))});
          const auto cells =
              expand(std::string(R"({"source": "dump", "path": ")") + name + R"(", "layout": ")" +
                     (token_major ? "token_major" : "head_major") + "\"}");
          ASSERT_EQ(cells.size(), 1u);
          EXPECT_EQ(cells[0].name, "dump/d");
          EXPECT_EQ(cells[0].seqlen, kSeqlen);
          const AttentionInput input = cells[0].load();
          EXPECT_EQ(input.name, "dump/d");
          EXPECT_EQ(input.dtype, StorageDType::kBF16);
          expect_sample(input);
        }
      }
    }
  }
}

TEST_F(DumpSource, values_are_rounded_to_the_dtype_of_the_run) {
  const Shape shape = {1, 1, 2};
  const std::vector<float> values = {1.0f + 1.0f / 1024, -3.0f};
  write("d.safetensors",
        {stored("q", DType::kF32, shape, values), stored("k", DType::kF32, shape, values),
         stored("v", DType::kF32, shape, values)});
  const std::string json = R"({"source": "dump", "path": "d.safetensors"})";
  EXPECT_EQ(expand(json)[0].load().q, (std::vector<float>{1.0f, -3.0f}));
  options_.dtype = StorageDType::kF16;
  EXPECT_EQ(expand(json)[0].load().q, values);  // 10 bits of fraction are enough
  options_.dtype = StorageDType::kF32;
  EXPECT_EQ(expand(json)[0].load().q, values);
}

TEST_F(DumpSource, overflow_of_the_dtype_is_an_input_error) {
  const Shape shape = {1, 1, 2};
  write("d.safetensors",
        {stored("q", DType::kF32, shape, {0, 1e6f}), zeros("k", shape), zeros("v", shape)});
  options_.dtype = StorageDType::kF16;
  const auto cells = expand(R"({"source": "dump", "path": "d.safetensors"})");
  EXPECT_THAT(message_of<InputError>([&] { cells[0].load(); }),
              HasSubstr("tensor 'q': element 1 is 1000000, too large for fp16"));
}

TEST_F(DumpSource, nan_is_named_with_its_index_unless_allowed) {
  const Shape shape = {2, 3, 4};
  std::vector<float> values(24, 0.5f);
  values[1 * 12 + 2 * 4 + 3] = std::numeric_limits<float>::quiet_NaN();
  write("d.safetensors",
        {zeros("q", shape), stored("k", DType::kF16, shape, values), zeros("v", shape)});
  const std::string json = R"({"source": "dump", "path": "d.safetensors"})";
  EXPECT_THAT(message_of<InputError>([&] { expand(json)[0].load(); }),
              HasSubstr("tensor 'k': nan at [head 1, token 2, dim 3]"));
  options_.allow_nonfinite = true;
  EXPECT_TRUE(std::isnan(expand(json)[0].load().k[23]));
}

TEST_F(DumpSource, shape_errors_name_file_tensor_found_and_expected) {
  const std::string json = R"({"source": "dump", "path": "layer12.safetensors"})";
  const auto error = [&](const Shape& q, const Shape& k, const Shape& v) {
    write_qkv("layer12.safetensors", q, k, v);
    return input_error(json);
  };
  EXPECT_THAT(error({8, 10, 16}, {2, 10, 12}, {2, 10, 12}),
              HasSubstr("layer12.safetensors: tensor 'k': head_dim is 12, expected 16 (from 'q' "
                        "[8, 10, 16])"));
  EXPECT_THAT(error({8, 10, 16}, {2, 9, 16}, {2, 9, 16}),
              HasSubstr("tensor 'k': seqlen is 9, expected 10 (from 'q' [8, 10, 16])"));
  EXPECT_THAT(error({8, 10, 16}, {2, 10, 16}, {2, 10, 12}),
              HasSubstr("tensor 'v': head_dim is 12, expected 16 (from 'k' [2, 10, 16])"));
  EXPECT_THAT(error({8, 10, 16}, {2, 10, 16}, {2, 11, 16}),
              HasSubstr("tensor 'v': seqlen is 11, expected 10"));
  EXPECT_THAT(error({8, 10, 16}, {2, 10, 16}, {4, 10, 16}),
              HasSubstr("tensor 'v': number of heads is 4, expected 2 (from 'k' [2, 10, 16])"));
  EXPECT_THAT(error({8, 10, 16}, {3, 10, 16}, {3, 10, 16}),
              HasSubstr("tensor 'k': number of heads is 3, expected a divisor of 8 (from 'q'"));
  EXPECT_THAT(
      error({80, 16}, {2, 10, 16}, {2, 10, 16}),
      HasSubstr("tensor 'q': shape is [80, 16], expected [heads, seqlen, head_dim] or [1,"));
  EXPECT_THAT(error({2, 8, 10, 16}, {2, 10, 16}, {2, 10, 16}),
              HasSubstr("tensor 'q': batch is 2, expected 1 (shape [2, 8, 10, 16] as [batch, "));
  EXPECT_THAT(error({8, 0, 16}, {2, 0, 16}, {2, 0, 16}),
              HasSubstr("tensor 'q': 8 heads, seqlen 0, head_dim 16"));
}

TEST_F(DumpSource, swapped_layout_is_suggested) {
  write_qkv("d.safetensors", {10, 8, 16}, {10, 2, 16}, {10, 2, 16});
  EXPECT_THAT(input_error(R"({"source": "dump", "path": "d.safetensors"})"),
              HasSubstr("the shapes agree with \"layout\": \"token_major\""));
  write_qkv("d.safetensors", {8, 10, 16}, {2, 10, 16}, {2, 10, 16});
  EXPECT_THAT(
      input_error(R"({"source": "dump", "path": "d.safetensors", "layout": "token_major"})"),
      HasSubstr("the shapes agree with \"layout\": \"head_major\""));
}

TEST_F(DumpSource, wrong_dtype_and_missing_tensor_are_input_errors) {
  const Shape shape = {2, 3, 4};
  write("d.h5", {zeros("q", shape), zeros("K", shape), zeros("v", shape, DType::kI32)});
  EXPECT_THAT(input_error(R"({"source": "dump", "path": "d.h5"})"),
              HasSubstr("d.h5: no tensor 'k', did you mean 'K'?"));
  EXPECT_THAT(input_error(R"({"source": "dump", "path": "d.h5", "tensors": {"k": "K"}})"),
              HasSubstr("tensor 'v': dtype is I32, expected F64, F32, F16 or BF16"));
  EXPECT_THAT(input_error(R"({"source": "dump", "path": "missing.h5"})"),
              HasSubstr("missing.h5: no such file"));
}

TEST_F(DumpSource, capture_gives_a_cell_per_layer) {
  for (const char* name : {"capture.safetensors", "capture.h5"}) {
    for (const auto dtype : {StorageDType::kF32, StorageDType::kF16, StorageDType::kBF16}) {
      write_capture(folder_ / name, {sample_input(10, dtype), sample_input(2, dtype)},
                    {{"model", "sample"}});
      EXPECT_EQ(open_tensor_file(folder_ / name)->metadata().at("model"), "sample");
      const std::string path = std::string(R"({"source": "dump", "path": ")") + name + "\"";
      const auto cells = expand(path + "}");
      ASSERT_EQ(cells.size(), 2u);
      EXPECT_EQ(cells[0].layer, 2);
      EXPECT_EQ(cells[1].layer, 10);
      EXPECT_TRUE(cells[1].names_layer);
      EXPECT_EQ(cells[1].name, "dump/capture");
      expect_sample(cells[0].load(), 2);
      expect_sample(cells[1].load(), 10);
      EXPECT_EQ(cells[1].load().layer, 10);
      const auto chosen = expand(path + R"(, "layers": 10, "name": "mine"})");
      ASSERT_EQ(chosen.size(), 1u);
      EXPECT_EQ(chosen[0].layer, 10);
      EXPECT_EQ(chosen[0].name, "mine");
    }
  }
  EXPECT_THAT(config_error(R"({"source": "dump", "path": "capture.h5", "layers": [2, 3]})"),
              HasSubstr("runs.json: inputs[0].layers: found 3, but 'capture.h5' holds layers 2, "
                        "10"));
}

TEST_F(DumpSource, capture_without_one_of_its_tensors_is_an_input_error) {
  const Shape shape = {2, 3, 4};
  write("c.safetensors", {zeros("layer.4.q", shape), zeros("layer.4.k", shape)});
  EXPECT_THAT(input_error(R"({"source": "dump", "path": "c.safetensors"})"),
              HasSubstr("no tensor 'layer.4.v'"));
}

TEST_F(DumpSource, single_dump_reads_back) {
  write_dump(folder_ / "one.safetensors", sample_input(0, StorageDType::kBF16));
  const auto cells = expand(R"({"source": "dump", "path": "one.safetensors"})");
  expect_sample(cells.at(0).load());
  EXPECT_THROW(write_capture(folder_ / "two.safetensors", {sample_input(1, StorageDType::kF32),
                                                           sample_input(1, StorageDType::kF32)}),
               UnsupportedError);
}

TEST_F(DumpSource, names_with_a_layer_place_choose_layers) {
  const Shape shape = {2, 3, 4};
  write("d.safetensors", {zeros("l0/q", shape), zeros("l0/k", shape), zeros("l0/v", shape),
                          zeros("l7/q", shape), zeros("l7/k", shape), zeros("l7/v", shape)});
  const std::string tensors =
      R"("tensors": {"q": "l{layer}/q", "k": "l{layer}/k", "v": "l{layer}/v"})";
  const auto cells =
      expand(R"({"source": "dump", "path": "d.safetensors", "layers": [0, 7], )" + tensors + "}");
  ASSERT_EQ(cells.size(), 2u);
  EXPECT_EQ(cells[1].layer, 7);
  EXPECT_TRUE(cells[1].names_layer);
  EXPECT_THAT(
      input_error(R"({"source": "dump", "path": "d.safetensors", "layers": 3, )" + tensors + "}"),
      HasSubstr("no tensor 'l3/q'"));
  EXPECT_THAT(config_error(R"({"source": "dump", "path": "d.safetensors", "layers": 0,
                               "tensors": {"q": "l0/q", "k": "l0/k", "v": "l0/v"}})"),
              HasSubstr("inputs[0].layers: 'd.safetensors' is no file of captured layers"));
}

TEST_F(DumpSource, list_of_paths_gives_distinct_names) {
  const Shape shape = {2, 3, 4};
  std::filesystem::create_directory(folder_ / "other");
  for (const char* name : {"a.safetensors", "b.h5", "other/b.safetensors"}) {
    write_qkv(name, shape, shape, shape);
  }
  const auto names = [&](const std::string& rest) {
    std::vector<std::string> found;
    auto cells = expand(R"({"source": "dump", "path": )" + rest + "}");
    std::vector<NamedInput> named;
    for (InputCell& cell : cells) named.push_back({&cell.name, cell.layer, 0, &cell.identity});
    tell_names_apart(named);
    for (const InputCell& cell : cells) found.push_back(cell.name);
    return found;
  };
  EXPECT_EQ(names(R"(["a.safetensors", "b.h5"])"), (std::vector<std::string>{"dump/a", "dump/b"}));
  EXPECT_EQ(names(R"(["b.h5", "other/b.safetensors"])"),
            (std::vector<std::string>{"dump/b path=b.h5", "dump/b path=other/b.safetensors"}));
  EXPECT_EQ(names(R"(["a.safetensors", "b.h5"], "name": "run")"),
            (std::vector<std::string>{"run/a", "run/b"}));
}

TEST_F(DumpSource, fp64_is_read_and_rounded) {
  std::string bytes;
  for (const double value : {0.1, -2.0, 1e-3, 4.0}) bytes += testing_support::bytes_of(value);
  const auto tensor = [&](const char* name) {
    return make_tensor(name, DType::kF64, {1, 2, 2}, bytes);
  };
  write("d.safetensors", {tensor("q"), tensor("k"), tensor("v")});
  const AttentionInput input =
      expand(R"({"source": "dump", "path": "d.safetensors"})").at(0).load();
  EXPECT_EQ(input.q[0], round_bf16(0.1f));
  EXPECT_EQ(input.v[1], -2.0f);
}

TEST_F(DumpSource, names_with_a_layer_place_want_layers) {
  write_qkv("d.safetensors", {2, 3, 4}, {2, 3, 4}, {2, 3, 4});
  EXPECT_THAT(config_error(R"({"source": "dump", "path": "d.safetensors",
                               "tensors": {"q": "layers/{layer}/q"}})"),
              HasSubstr("inputs[0].tensors: the names hold \"{layer}\", expected \"layers\""));
}

TEST_F(DumpSource, a_changed_file_is_another_input_and_a_copy_is_not) {
  const auto id = [&](const char* path) {
    return expand(std::string(R"({"source": "dump", "path": ")") + path + "\"}").at(0).identity;
  };
  write_qkv("a.safetensors", {2, 3, 4}, {2, 3, 4}, {2, 3, 4});
  std::filesystem::copy_file(folder_ / "a.safetensors", folder_ / "copy.safetensors");
  const InputIdentity before = id("a.safetensors");
  EXPECT_EQ(id("copy.safetensors").id(), before.id());
  EXPECT_NE(id("copy.safetensors").origin, before.origin);
  write_dump(folder_ / "a.safetensors", sample_input(0, StorageDType::kBF16));
  EXPECT_NE(id("a.safetensors").id(), before.id());
}

TEST_F(DumpSource, folder_of_npy_files_is_a_dump) {
  std::filesystem::create_directory(folder_ / "dumped");
  for (const auto& [name, tensor, heads] :
       {std::tuple("q", 0, kQHeads), std::tuple("k", 1, kKvHeads), std::tuple("v", 2, kKvHeads)}) {
    write(std::string("dumped/") + name + ".npy",
          {stored(name, DType::kF16, {heads, kSeqlen, kHeadDim}, values_of(tensor, heads))});
  }
  for (const char* path : {"dumped", "dumped/"}) {
    const auto cells = expand(std::string(R"({"source": "dump", "path": ")") + path + "\"}");
    EXPECT_EQ(cells.at(0).name, "dump/dumped");
    expect_sample(cells.at(0).load());
  }
}

TEST_F(DumpSource, config_errors_name_the_key) {
  write_qkv("d.h5", {2, 3, 4}, {2, 3, 4}, {2, 3, 4});
  EXPECT_THAT(config_error(R"({"source": "dump"})"),
              HasSubstr("runs.json: inputs[0]: key 'path' is missing"));
  EXPECT_THAT(config_error(R"({"source": "dump", "pth": "d.h5"})"),
              HasSubstr("runs.json: inputs[0].pth: unknown key, did you mean 'path'?"));
  EXPECT_THAT(config_error(R"({"source": "dump", "path": "d.h5", "layout": "tokens"})"),
              HasSubstr("inputs[0].layout: unknown value 'tokens'"));
  EXPECT_THAT(config_error(R"({"source": "dump", "path": "d.h5", "tensors": {"query": "q"}})"),
              HasSubstr("inputs[0].tensors.query: unknown key"));
  EXPECT_THAT(config_error(R"({"source": "dump", "path": []})"), HasSubstr("empty list"));
  EXPECT_THAT(config_error(R"({"source": "dump", "path": "d.h5", "layers": -1})"),
              HasSubstr("inputs[0].layers: found -1"));
}

TEST_F(DumpSource, unknown_source_suggests_the_nearest) {
  EXPECT_EQ(config_error(R"({"source": "dumps"})"),
            "runs.json: inputs[0].source: unknown source 'dumps', did you mean 'dump'?; expected "
            "one of: weights, dump, synthetic");
  EXPECT_THAT(config_error(R"({"path": "d.h5"})"),
              StartsWith("runs.json: inputs[0]: key 'source'"));
  EXPECT_THAT(config_error(R"({"source": 3})"), HasSubstr("found 3 (number), expected a string"));
  EXPECT_THAT(config_error("[]"), HasSubstr("runs.json: inputs[0]: found [] (array)"));
}

}  // namespace
}  // namespace s2o
