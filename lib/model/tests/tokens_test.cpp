#include "lib/model/tokens.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>
#include <limits>
#include <memory>
#include <string>
#include <vector>

#include "lib/core/error.h"
#include "lib/input/formats/format.h"
#include "lib/model/tests/model_folder.h"

namespace s2o {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing_support::data_folder;
using testing_support::message_of;
using testing_support::TempFolder;
using testing_support::write_file;

template <class Id>
HostTensor tensor_of(const std::string& name, DType dtype, std::vector<std::int64_t> shape,
                     const std::vector<Id>& values) {
  const std::size_t bytes = values.size() * sizeof(Id);
  std::shared_ptr<std::byte[]> data(new std::byte[bytes]);
  std::memcpy(data.get(), values.data(), bytes);
  return {.info = {.name = name, .dtype = dtype, .shape = std::move(shape), .num_bytes = bytes},
          .file = "",
          .data = std::shared_ptr<const std::byte>(data, data.get())};
}

void write_tensors(const std::filesystem::path& path, const std::vector<HostTensor>& tensors) {
  format_of(path).write(path, tensors);
}

TEST(ReadTokenFile, shipped_files_have_documented_lengths) {
  const TokenFile war = read_token_file(data_folder() / "tokens/war_and_peace.safetensors");
  EXPECT_EQ(war.ids.size(), 131072u);
  EXPECT_EQ(war.ids.front(), 0) << "begins with <|bos|>";
  EXPECT_EQ(read_token_file(data_folder() / "tokens/middlemarch.safetensors").ids.size(), 65536u);
  EXPECT_NO_THROW(select_tokens(war, 0, 131072, 4096));
}

TEST(ReadTokenFile, every_dtype_and_shape_reads_the_same) {
  const TempFolder folder;
  write_tensors(folder / "a.safetensors",
                {tensor_of<std::int32_t>("input_ids", DType::kI32, {3}, {5, 0, 60000})});
  write_tensors(folder / "b.safetensors",
                {tensor_of<std::int64_t>("input_ids", DType::kI64, {1, 3}, {5, 0, 60000})});
  write_tensors(folder / "c.SafeTensors",
                {tensor_of<float>("other", DType::kF32, {1}, {1.0f}),
                 tensor_of<std::uint16_t>("input_ids", DType::kU16, {3}, {5, 0, 60000})});
  write_tensors(folder / "d.npy",
                {tensor_of<std::int32_t>("whatever", DType::kI32, {1, 3}, {5, 0, 60000})});
  write_file(folder / "e.txt", "5 0\t60000\r\n");
  write_file(folder / "f", "\n 5\n0\n60000");
  for (const char* name :
       {"a.safetensors", "b.safetensors", "c.SafeTensors", "d.npy", "e.txt", "f"}) {
    EXPECT_THAT(read_token_file(folder / name).ids, ElementsAre(5, 0, 60000)) << name;
  }
}

TEST(ReadTokenFile, negative_ids_are_kept_for_the_check) {
  const TempFolder folder;
  write_file(folder / "a.txt", "1 -2");
  EXPECT_THAT(read_token_file(folder / "a.txt").ids, ElementsAre(1, -2));
}

TEST(ReadTokenFile, wrong_tensor_is_refused) {
  const TempFolder folder;
  const auto path = folder / "a.safetensors";
  write_tensors(path, {tensor_of<float>("input_ids", DType::kF32, {2}, {1, 2})});
  EXPECT_THAT(message_of<InputError>([&] { read_token_file(path); }),
              HasSubstr("tensor 'input_ids': dtype is F32, expected I32, I64 or U16"));
  write_tensors(path, {tensor_of<std::int32_t>("input_ids", DType::kI32, {2, 2}, {1, 2, 3, 4})});
  EXPECT_THAT(message_of<InputError>([&] { read_token_file(path); }),
              HasSubstr("shape is [2, 2], expected [n] or [1, n]"));
  write_tensors(path, {tensor_of<std::int32_t>("input_id", DType::kI32, {2}, {1, 2})});
  const std::string message = message_of<InputError>([&] { read_token_file(path); });
  EXPECT_THAT(message, HasSubstr("'input_ids'"));
  EXPECT_THAT(message, HasSubstr("'input_id'"));
}

TEST(ReadTokenFile, bad_text_names_line_and_index) {
  const TempFolder folder;
  const auto path = folder / "a.txt";
  const std::vector<std::pair<std::string, std::string>> cases = {
      {"1 2\n3 four 5", "line 2: found 'four' at index 3"},
      {"1.5", "line 1: found '1.5' at index 0"},
      {"7,8", "found '7,8'"},
      {"99999999999999999999", "found '99999999999999999999'"},
      {std::string("1 \x00\xff", 4), "found '?\?' at index 1"},
      {std::string(100, '9'), "found '99999999999999999999...'"},
  };
  for (const auto& [text, expected] : cases) {
    write_file(path, text);
    EXPECT_THAT(message_of<InputError>([&] { read_token_file(path); }), HasSubstr(expected));
  }
}

TEST(ReadTokenFile, missing_file_or_folder_is_refused) {
  const TempFolder folder;
  for (const char* name : {"none.txt", "none.safetensors", ""}) {
    EXPECT_THROW(read_token_file(folder / name), InputError) << name;
  }
}

TEST(SelectTokens, range_inside_is_returned) {
  const TokenFile file{.file = "t", .ids = {9, 8, 7, 6}};
  EXPECT_THAT(select_tokens(file, 1, 2, 10), ElementsAre(8, 7));
  EXPECT_THAT(select_tokens(file, 0, 4, 10), ElementsAre(9, 8, 7, 6));
}

TEST(SelectTokens, range_outside_is_refused) {
  const TokenFile file{.file = "t.txt", .ids = {9, 8, 7, 6}};
  EXPECT_THAT(message_of<InputError>([&] { select_tokens(file, 2, 3, 10); }),
              HasSubstr("t.txt: 4 token ids, expected at least offset 2 + seqlen 3"));
  constexpr auto kHuge = std::numeric_limits<std::int64_t>::max();
  EXPECT_THROW(select_tokens(file, kHuge, kHuge, 10), InputError);
  EXPECT_THROW(select_tokens(file, 1, kHuge, 10), InputError);
  EXPECT_THROW(select_tokens(file, -1, 1, 10), InputError);
  EXPECT_THROW(select_tokens(file, 0, 0, 10), InputError);
}

TEST(SelectTokens, id_outside_the_vocabulary_names_its_index_in_the_file) {
  const TokenFile file{.file = "t.txt", .ids = {1, 2, 10, -1}};
  EXPECT_THAT(message_of<InputError>([&] { select_tokens(file, 1, 2, 10); }),
              HasSubstr("t.txt: token id 10 at index 2, expected an id in [0, 10)"));
  EXPECT_THAT(message_of<InputError>([&] { select_tokens(file, 3, 1, 10); }),
              HasSubstr("token id -1 at index 3"));
  EXPECT_NO_THROW(select_tokens(file, 0, 2, 10)) << "ids beyond the range do not matter";
}

}  // namespace
}  // namespace s2o
