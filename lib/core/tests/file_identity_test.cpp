#include "lib/core/file_identity.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>

#include "lib/core/error.h"
#include "lib/core/regular_file.h"
#include "lib/testing/files.h"

namespace s2o {
namespace {

using ::testing::HasSubstr;
using testing_support::message_of;
using testing_support::TempFolder;
using testing_support::write_file;

TEST(file_identity, equal_bytes_have_one_identity_wherever_they_lie) {
  const TempFolder folder;
  write_file(folder / "a", "twelve bytes");
  write_file(folder / "b", "twelve bytes");
  EXPECT_EQ(file_identity(folder / "a").hash, file_identity(folder / "b").hash);
  EXPECT_EQ(file_identity(folder / "a").num_bytes, 12u);
  EXPECT_EQ(file_identity(folder / "a").modified_ns, 0);
}

TEST(file_identity, any_byte_of_a_small_file_counts) {
  const TempFolder folder;
  std::string text(100'000, 'x');
  write_file(folder / "a", text);
  const std::string hash = file_identity(folder / "a").hash;
  for (const std::size_t place : {std::size_t{0}, std::size_t{50'001}, text.size() - 1}) {
    std::string changed = text;
    changed[place] = 'y';
    write_file(folder / "a", changed);
    EXPECT_NE(file_identity(folder / "a").hash, hash) << place;
  }
  write_file(folder / "a", text + '\0');
  EXPECT_NE(file_identity(folder / "a").hash, hash);
}

TEST(file_identity, of_a_large_file_header_end_and_time_count) {
  const TempFolder folder;
  const std::filesystem::path path = folder / "large";
  write_file(path, "header");
  std::filesystem::resize_file(path, 3 * kWholeHashBytes);  // sparse
  const FileIdentity before = file_identity(path);
  EXPECT_NE(before.modified_ns, 0);
  for (const std::streamoff place : {std::streamoff{2}, std::streamoff{3 * kWholeHashBytes} - 1}) {
    std::fstream stream(path, std::ios::binary | std::ios::in | std::ios::out);
    stream.seekp(place);
    stream.put('!');
    stream.close();
    EXPECT_NE(file_identity(path).hash, before.hash) << place;
  }
}

TEST(file_identity, of_a_folder_is_that_of_its_tensors_and_config) {
  const TempFolder folder;
  write_file(folder / "config.json", "{}");
  write_file(folder / "model.safetensors", "weights");
  const std::string hash = file_identity(folder.path()).hash;
  write_file(folder / "README.md", "no part of it");
  EXPECT_EQ(file_identity(folder.path()).hash, hash);
  write_file(folder / "model.safetensors", "weightz");
  EXPECT_NE(file_identity(folder.path()).hash, hash);
}

TEST(RegularFile, what_is_no_file_is_refused_at_once) {
  const TempFolder folder;
  ASSERT_EQ(mkfifo((folder / "pipe").c_str(), 0600), 0);
  std::filesystem::create_symlink("loop", folder / "loop");
  const auto message = [](const std::filesystem::path& path) {
    return message_of<InputError>([&] { read_whole_file(path); });
  };
  EXPECT_THAT(message(folder / "pipe"), HasSubstr("is a device or pipe, expected a file"));
  EXPECT_THAT(message("/dev/zero"), HasSubstr("is a device or pipe, expected a file"));
  EXPECT_THAT(message(folder.path()), HasSubstr("is a folder, expected a file"));
  EXPECT_THAT(message(folder / "none"), HasSubstr("no such file"));
  EXPECT_THAT(message(folder / "loop"), HasSubstr("symbolic links"));
  EXPECT_THAT(message(folder / std::string(5000, 'x')), HasSubstr("File name too long"));
}

}  // namespace
}  // namespace s2o
