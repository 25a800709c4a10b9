// Broken and hostile safetensors files, and sharded sets.
#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <chrono>
#include <string>
#include <vector>

#include "lib/core/error.h"
#include "lib/input/formats/format.h"
#include "lib/testing/files.h"

namespace s2o {
namespace {

using ::testing::HasSubstr;
using testing_support::bytes_of;
using testing_support::data_of;
using testing_support::make_tensor;
using testing_support::message_of;
using testing_support::TempFolder;
using testing_support::write_file;

std::string packed(const std::string& header, std::size_t data_bytes) {
  return bytes_of(std::uint64_t{header.size()}) + header + std::string(data_bytes, 'x');
}

// A header with the tensor 'a': 4 bytes at 0, and 'b' as given.
std::string with_b(const std::string& b) {
  return R"({"a": {"dtype": "U8", "shape": [4], "data_offsets": [0, 4]}, "b": )" + b + "}";
}

struct HostileCase {
  const char* what;
  std::string bytes;
  const char* message;  // part of it
};

std::vector<HostileCase> hostile_cases() {
  const std::string good = R"({"dtype": "F32", "shape": [2], "data_offsets": [4, 12]})";
  return {
      {"shorter than the length", "1234567",
       "file has 7 bytes, a safetensors file has at least 10"},
      {"length beyond the file", bytes_of(std::uint64_t{1000}) + "{}",
       "header length is 1000, but only 2 bytes"},
      {"length beyond the limit", bytes_of(std::uint64_t{100'000'001}) + "{}",
       "expected at most 100000000"},
      {"length with the sign bit", bytes_of(~std::uint64_t{0}) + "{}",
       "expected at most 100000000"},
      {"no header", packed("", 0), "does not begin with '{'"},
      {"space before the header", packed(" {}", 0), "does not begin with '{'"},
      {"list as header", packed("[1, 2]", 0), "does not begin with '{'"},
      {"broken JSON", packed(R"({"a": )", 0), "header: line 1, column 7"},
      {"no UTF-8", packed("{\"\xff\": 1}", 0), "header: line 1"},
      {"text behind the JSON", packed("{}x", 0), "header: line 1"},
      {"entry is no object", packed(with_b("3"), 4), "tensor 'b': header entry is a number"},
      {"no dtype", packed(with_b(R"({"shape": [2], "data_offsets": [4, 12]})"), 12),
       "'dtype' is missing"},
      {"no shape", packed(with_b(R"({"dtype": "F32", "data_offsets": [4, 12]})"), 12),
       "'shape' is missing"},
      {"no offsets", packed(with_b(R"({"dtype": "F32", "shape": [2]})"), 12),
       "'data_offsets' is missing"},
      {"key too many",
       packed(with_b(R"({"dtype": "F32", "shape": [2], "data_offsets": [4, 12], "x": 1})"), 12),
       "keys besides"},
      {"dtype is a number",
       packed(with_b(R"({"dtype": 3, "shape": [2], "data_offsets": [4, 6]})"), 6),
       "dtype is a number"},
      {"shape is a number",
       packed(with_b(R"({"dtype": "U8", "shape": 2, "data_offsets": [4, 6]})"), 6),
       "shape is a number"},
      {"negative extent",
       packed(with_b(R"({"dtype": "U8", "shape": [-2], "data_offsets": [4, 6]})"), 6),
       "shape holds -2"},
      {"fractional extent",
       packed(with_b(R"({"dtype": "U8", "shape": [2.0], "data_offsets": [4, 6]})"), 6),
       "shape holds 2.0"},
      {"text as extent",
       packed(with_b(R"({"dtype": "U8", "shape": ["2"], "data_offsets": [4, 6]})"), 6),
       "shape holds \"2\""},
      {"extent of 2^63",
       packed(with_b(R"({"dtype": "U8", "shape": [9223372036854775808], "data_offsets": [4, 6]})"),
              6),
       "shape holds 9223372036854775808"},
      {"product overflows",
       packed(
           with_b(R"({"dtype": "F32", "shape": [4294967296, 4294967296], "data_offsets": [4, 6]})"),
           6),
       "overflows 63 bits"},
      {"product wraps to the span",
       packed(
           with_b(R"({"dtype": "U8", "shape": [4294967296, 4294967296], "data_offsets": [4, 4]})"),
           4),
       "overflows 63 bits"},
      {"three offsets",
       packed(with_b(R"({"dtype": "U8", "shape": [2], "data_offsets": [4, 6, 8]})"), 6),
       "expected [begin, end]"},
      {"offsets reversed",
       packed(with_b(R"({"dtype": "U8", "shape": [2], "data_offsets": [6, 4]})"), 6),
       "expected [begin, end]"},
      {"negative offset",
       packed(with_b(R"({"dtype": "U8", "shape": [2], "data_offsets": [-2, 0]})"), 6),
       "data_offsets holds -2"},
      {"span is not the size",
       packed(with_b(R"({"dtype": "F32", "shape": [2], "data_offsets": [4, 8]})"), 8),
       "data_offsets span 4 bytes, expected 8 for F32 of shape [2]"},
      {"overlap", packed(with_b(R"({"dtype": "U8", "shape": [4], "data_offsets": [2, 6]})"), 6),
       "tensor 'b': data begins at 2, inside tensor 'a' that ends at 4"},
      {"same place", packed(with_b(R"({"dtype": "U8", "shape": [4], "data_offsets": [0, 4]})"), 4),
       "data begins at 0, inside tensor"},
      {"gap", packed(with_b(R"({"dtype": "U8", "shape": [4], "data_offsets": [6, 10]})"), 10),
       "tensor 'b': data begins at 6, 2 bytes after the end of tensor 'a'"},
      {"gap at the start",
       packed(R"({"a": {"dtype": "U8", "shape": [1], "data_offsets": [1, 2]}})", 2),
       "1 bytes after the end of the header"},
      {"beyond the file", packed(with_b(good), 11),
       "tensor 'b': data ends at 12, the file holds 11 bytes of data"},
      {"far beyond the file",
       packed(
           R"({"a": {"dtype": "U8", "shape": [9223372036854775807], "data_offsets": [0, 9223372036854775807]}})",
           4),
       "the file holds 4 bytes of data"},
      {"bytes after the data", packed(with_b(good), 13),
       "1 bytes of data after the end of tensor 'b'"},
      {"data without tensors", packed("{}", 3), "3 bytes of data after the end of the header"},
      {"name twice",
       packed(
           R"({"a": {"dtype": "U8", "shape": [0], "data_offsets": [0, 0]}, "a": {"dtype": "U8", "shape": [0], "data_offsets": [0, 0]}})",
           0),
       "key 'a' occurs twice"},
      {"metadata is no object", packed(R"({"__metadata__": "x"})", 0), "__metadata__ is no object"},
      {"metadata holds a number", packed(R"({"__metadata__": {"x": 1}})", 0),
       "__metadata__.x is a number"},
      {"deep nesting", packed("{\"a\": " + std::string(100000, '['), 0), "nested deeper"},
  };
}

TEST(safetensors, hostile_header_is_an_input_error) {
  const TempFolder folder;
  for (const HostileCase& hostile : hostile_cases()) {
    write_file(folder / "x.safetensors", hostile.bytes);
    const std::string message =
        message_of<InputError>([&] { open_tensor_file(folder / "x.safetensors"); });
    EXPECT_THAT(message, HasSubstr("x.safetensors: ")) << hostile.what;
    EXPECT_THAT(message, HasSubstr(hostile.message)) << hostile.what;
  }
}

TEST(safetensors, valid_neighbours_of_the_hostile_files_open) {
  const TempFolder folder;
  const auto path = folder / "x.safetensors";
  write_file(path,
             packed(with_b(R"({"dtype": "F32", "shape": [2], "data_offsets": [4, 12]})"), 12));
  EXPECT_EQ(open_tensor_file(path)->read("b").info.num_bytes, 8u);
  write_file(path, packed("{}   ", 0));
  EXPECT_TRUE(open_tensor_file(path)->tensors().empty());
  // Empty tensors, also with extents whose product would overflow, take no place.
  write_file(path, packed(with_b(R"({"dtype": "F32", "shape": [0, 4294967296, 4294967296],
                                     "data_offsets": [4, 4]})"),
                          4));
  EXPECT_EQ(open_tensor_file(path)->read("b").info.num_bytes, 0u);
}

TEST(safetensors, tensor_of_an_unknown_dtype_is_refused_when_it_is_used) {
  const TempFolder folder;
  const auto path = folder / "x.safetensors";
  for (const char* dtype : {"U64", "C64", "F8_E4M3", "F8_E5M2"}) {
    write_file(path, packed(with_b(std::string(R"({"dtype": ")") + dtype +
                                   R"(", "shape": [2], "data_offsets": [4, 12]})"),
                            12));
    const auto file = open_tensor_file(path);
    ASSERT_EQ(file->tensors().size(), 1u);
    EXPECT_EQ(file->read("a").info.num_bytes, 4u);
    EXPECT_THAT(
        message_of<InputError>([&] { file->read("b"); }),
        HasSubstr(std::string("tensor 'b': dtype is '") + dtype + "', expected one of: F64"));
    EXPECT_EQ(file->skipped().size(), 1u);
  }
}

TEST(safetensors, many_tensors_open_in_linear_time) {
  const TempFolder folder;
  constexpr int kTensors = 100'000;
  std::string header = "{";
  for (int i = 0; i < kTensors; ++i) {
    header += fmt::format(R"({}"t{}": {{"dtype": "U8", "shape": [1], "data_offsets": [{}, {}]}})",
                          i == 0 ? "" : ", ", i, i, i + 1);
  }
  write_file(folder / "x.safetensors", packed(header + "}", kTensors));
  const auto begin = std::chrono::steady_clock::now();
  EXPECT_EQ(open_tensor_file(folder / "x.safetensors")->tensors().size(), 100'000u);
  // Quadratic, it took minutes.
  EXPECT_LT(std::chrono::steady_clock::now() - begin, std::chrono::seconds(20));
}

class ShardedSet : public ::testing::Test {
 protected:
  void SetUp() override {
    const Format& format = format_of("x.safetensors");
    format.write(folder_ / "one.safetensors", {make_tensor("a", DType::kU8, {2}, "aa")});
    format.write(folder_ / "two.safetensors", {make_tensor("b", DType::kU8, {3}, "bbb"),
                                               make_tensor("c", DType::kU8, {1}, "c")});
  }
  std::string open_error(const std::string& index) {
    write_file(index_, index);
    return message_of<InputError>([&] { open_tensor_file(index_); });
  }

  TempFolder folder_;
  std::filesystem::path index_ = folder_ / "model.safetensors.index.json";
};

TEST_F(ShardedSet, index_opens_the_union) {
  write_file(index_, R"({"metadata": {"total_size": 6}, "weight_map":
      {"a": "one.safetensors", "c": "two.safetensors", "b": "two.safetensors"}})");
  for (const std::filesystem::path& path : {index_, folder_.path()}) {
    const auto file = open_tensor_file(path);
    EXPECT_EQ(file->tensors().size(), 3u);
    EXPECT_EQ(data_of(file->read("a")), "aa");
    EXPECT_EQ(data_of(file->read("b")), "bbb");
    EXPECT_EQ(data_of(file->read("c")), "c");
    EXPECT_THAT(message_of<InputError>([&] { file->read("d"); }),
                HasSubstr("index.json: no tensor 'd'"));
  }
}

TEST_F(ShardedSet, missing_shard_names_shard_and_index) {
  const std::string message = open_error(R"({"weight_map": {"a": "three.safetensors"}})");
  EXPECT_THAT(message, HasSubstr("model.safetensors.index.json: shard '"));
  EXPECT_THAT(message, HasSubstr("three.safetensors' is missing"));
}

TEST_F(ShardedSet, tensor_that_is_not_in_its_shard_is_named) {
  EXPECT_THAT(open_error(R"({"weight_map": {"a": "two.safetensors"}})"),
              HasSubstr("two.safetensors: tensor 'a' is missing, which "));
}

TEST_F(ShardedSet, broken_shard_is_named) {
  write_file(folder_ / "one.safetensors", "short");
  EXPECT_THAT(open_error(R"({"weight_map": {"a": "one.safetensors"}})"),
              HasSubstr("one.safetensors: file has 5 bytes"));
}

TEST_F(ShardedSet, index_names_only_its_neighbours) {
  for (const char* shard : {"/etc/passwd", "../one.safetensors", "", "one.txt", "."}) {
    EXPECT_THAT(open_error(std::string(R"({"weight_map": {"a": ")") + shard + "\"}}"),
                HasSubstr("expected the name of a .safetensors file in the same folder"))
        << shard;
  }
}

TEST_F(ShardedSet, broken_index_is_an_input_error) {
  EXPECT_THAT(open_error("{"), HasSubstr("line 1"));
  EXPECT_THAT(open_error("[]"), HasSubstr("expected an object with an object 'weight_map'"));
  EXPECT_THAT(open_error("{}"), HasSubstr("'weight_map'"));
  EXPECT_THAT(open_error(R"({"weight_map": []})"), HasSubstr("'weight_map'"));
  EXPECT_THAT(open_error(R"({"weight_map": {"a": 1}})"), HasSubstr("weight_map['a'] is a number"));
  EXPECT_THAT(open_error(R"({"weight_map": {"a": "one.safetensors", "a": "two.safetensors"}})"),
              HasSubstr("occurs twice"));
}

}  // namespace
}  // namespace s2o
