// Broken and hostile numpy files and zip archives.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <zlib.h>

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
using testing_support::message_of;
using testing_support::TempFolder;
using testing_support::write_file;

const std::string kMagic("\x93NUMPY", 6);

std::string npy(const std::string& dict, const std::string& data, char version = 1) {
  std::string bytes = kMagic + version + '\0';
  bytes += version == 1 ? bytes_of(static_cast<std::uint16_t>(dict.size()))
                        : bytes_of(static_cast<std::uint32_t>(dict.size()));
  return bytes + dict + data;
}

std::string dict(const std::string& descr, const std::string& shape,
                 const std::string& fortran = "False") {
  return "{'descr': " + descr + ", 'fortran_order': " + fortran + ", 'shape': " + shape + ", }\n";
}

struct HostileCase {
  const char* what;
  std::string bytes;
  const char* message;
};

TEST(npy, hostile_header_is_an_input_error) {
  const std::string good = dict("'<f4'", "(2,)");
  const std::string huge_length = kMagic + '\2' + '\0' + bytes_of(std::uint32_t{0xffffffff}) + good;
  const std::vector<HostileCase> cases = {
      {"no magic", "PK" + npy(good, "12345678"), "does not begin with the npy magic"},
      {"magic alone", kMagic, "header is truncated"},
      {"version 0", npy(good, "12345678", 0), "npy version is 0.0"},
      {"version 4", npy(good, "12345678", 4), "npy version is 4.0"},
      {"length beyond the file", kMagic + '\1' + '\0' + "\xff\x7f" + good, "but only"},
      {"length of 4 GiB", huge_length, "header length is 4294967295, expected at most"},
      {"too few bytes", npy(good, "1234567"), "7 bytes of data, expected 8 for F32 of shape [2]"},
      {"too many bytes", npy(good, "123456789"), "9 bytes of data, expected 8"},
      {"no dict", npy("[1, 2]", ""), "offset 0: expected '{'"},
      {"dict without an end", npy("{'descr': '<f4', ", ""), "expected a string"},
      {"text behind the dict", npy(good + "x", "12345678"), "text after the closing '}'"},
      {"key missing", npy("{'descr': '<f4', 'shape': (2,)}", ""), "expected the keys"},
      {"key unknown", npy("{'descr': '<f4', 'order': 1}", ""), "key 'order' is unknown"},
      {"key twice", npy("{'descr': '<f4', 'descr': '<f4'}", ""),
       "key 'descr' is unknown or occurs"},
      {"key without quotes", npy("{descr: '<f4'}", ""), "expected a string"},
      {"string without an end", npy("{'descr: 1}", ""), "string without an end"},
      {"order is a number", npy(dict("'<f4'", "(2,)", "1"), ""), "expected True or False"},
      {"shape is a number", npy(dict("'<f4'", "2"), ""), "expected '('"},
      {"shape without an end", npy("{'shape': (2, ", ""), "expected an integer"},
      {"negative extent", npy(dict("'<f4'", "(-2,)"), "12345678"), "expected no negative extent"},
      {"extent of 2^63", npy(dict("'<f4'", "(9223372036854775808,)"), ""), "below 2^63"},
      {"product overflows", npy(dict("'<f4'", "(4294967296, 4294967296)"), ""),
       "overflows 63 bits"},
      {"too many dimensions", npy(dict("'<f4'", "(" + std::string(130, '1') + ")"), ""),
       "below 2^63"},
      {"fractional extent", npy(dict("'<f4'", "(2.5,)"), "12345678"), "expected ',' or ')'"},
      {"unknown dtype", npy(dict("'<c8'", "(1,)"), "12345678"), "dtype is '<c8', expected one of"},
      {"dtype without a type", npy(dict("'<'", "(1,)"), "12345678"), "dtype is '<'"},
      {"dtype is empty", npy(dict("''", "(1,)"), "12345678"), "dtype is ''"},
  };
  const TempFolder folder;
  for (const HostileCase& hostile : cases) {
    write_file(folder / "x.npy", hostile.bytes);
    const std::string message = message_of<InputError>([&] { open_tensor_file(folder / "x.npy"); });
    EXPECT_THAT(message, HasSubstr("x.npy: ")) << hostile.what;
    EXPECT_THAT(message, HasSubstr(hostile.message)) << hostile.what;
  }
}

TEST(npy, more_than_64_dimensions_are_refused) {
  const TempFolder folder;
  std::string shape = "(";
  for (int i = 0; i < 65; ++i) shape += "1, ";
  write_file(folder / "x.npy", npy(dict("'<f4'", shape + ")"), "1234"));
  EXPECT_THAT(message_of<InputError>([&] { open_tensor_file(folder / "x.npy"); }),
              HasSubstr("more than 64 dimensions"));
}

TEST(npy, fortran_order_becomes_c_order) {
  const TempFolder folder;
  // Columns one after the other: element (i, j) is the character 'a' + 3 i + j.
  write_file(folder / "x.npy", npy(dict("'|u1'", "(2, 3)", "True"), "adbecf"));
  EXPECT_EQ(data_of(open_tensor_file(folder / "x.npy")->read("x")), "abcdef");
}

// What a zip archive with one stored or deflated member is made of, so that tests can lie.
struct ZipParts {
  std::string name = "q.npy";
  std::string content = npy(dict("'|u1'", "(3,)"), "abc");
  std::string stored = content;
  std::uint16_t flags = 0;
  std::uint16_t method = 0;
  std::uint32_t crc = static_cast<std::uint32_t>(
      crc32_z(0, reinterpret_cast<const Bytef*>(content.data()), content.size()));
  std::uint32_t stored_size = static_cast<std::uint32_t>(stored.size());
  std::uint32_t size = static_cast<std::uint32_t>(content.size());
  std::uint32_t member_offset = 0;
  std::uint16_t num_entries = 1;
  std::int64_t directory_shift = 0;
  std::uint32_t directory_size_change = 0;

  void deflate_content() {
    method = 8;
    stored.assign(compressBound(content.size()) + 64, '\0');
    z_stream stream{};
    deflateInit2(&stream, 9, Z_DEFLATED, -MAX_WBITS, 9, Z_DEFAULT_STRATEGY);
    stream.next_in = reinterpret_cast<Bytef*>(content.data());
    stream.avail_in = static_cast<uInt>(content.size());
    stream.next_out = reinterpret_cast<Bytef*>(stored.data());
    stream.avail_out = static_cast<uInt>(stored.size());
    deflate(&stream, Z_FINISH);
    stored.resize(stream.total_out);
    deflateEnd(&stream);
    stored_size = static_cast<std::uint32_t>(stored.size());
  }

  std::string bytes() const {
    const std::uint16_t none = 0;
    const auto name_size = static_cast<std::uint16_t>(name.size());
    std::string archive = bytes_of(std::uint32_t{0x04034b50}) + bytes_of(none) + bytes_of(flags) +
                          bytes_of(method) + std::string(16, '\0') + bytes_of(name_size) +
                          bytes_of(none) + name + stored;
    std::string entry = bytes_of(std::uint32_t{0x02014b50}) + std::string(4, '\0') +
                        bytes_of(flags) + bytes_of(method) + std::string(4, '\0') + bytes_of(crc) +
                        bytes_of(stored_size) + bytes_of(size) + bytes_of(name_size) +
                        std::string(12, '\0') + bytes_of(member_offset) + name;
    const auto offset =
        static_cast<std::uint32_t>(static_cast<std::int64_t>(archive.size()) + directory_shift);
    const auto entry_size = static_cast<std::uint32_t>(entry.size()) + directory_size_change;
    return archive + entry + bytes_of(std::uint32_t{0x06054b50}) + std::string(4, '\0') +
           bytes_of(num_entries) + bytes_of(num_entries) + bytes_of(entry_size) + bytes_of(offset) +
           bytes_of(none);
  }
};

class Npz : public ::testing::Test {
 protected:
  std::string error(const ZipParts& parts) { return error(parts.bytes()); }
  std::string error(const std::string& bytes) {
    write_file(path_, bytes);
    return message_of<InputError>([&] { open_tensor_file(path_)->read("q"); });
  }

  TempFolder folder_;
  std::filesystem::path path_ = folder_ / "x.npz";
};

TEST_F(Npz, hand_made_archive_opens) {
  ZipParts parts;
  write_file(path_, parts.bytes());
  EXPECT_EQ(data_of(open_tensor_file(path_)->read("q")), "abc");
  parts.deflate_content();
  write_file(path_, parts.bytes());
  EXPECT_EQ(data_of(open_tensor_file(path_)->read("q")), "abc");
}

TEST_F(Npz, every_truncation_is_an_input_error) {
  const std::string bytes = ZipParts().bytes();
  for (std::size_t size = 1; size < bytes.size(); ++size) {
    EXPECT_THAT(error(bytes.substr(0, size)), HasSubstr("no end of a zip directory")) << size;
  }
}

TEST_F(Npz, wrong_checksum_is_an_input_error) {
  ZipParts parts;
  parts.crc ^= 1;
  EXPECT_THAT(error(parts), HasSubstr("checksum is"));
  parts.deflate_content();
  EXPECT_THAT(error(parts), HasSubstr("checksum is"));
}

TEST_F(Npz, lies_about_sizes_are_input_errors) {
  ZipParts parts;
  parts.stored_size = parts.size = 0x7fffffff;
  EXPECT_THAT(error(parts), HasSubstr("reaches beyond"));
  parts = {};
  parts.size += 1;
  EXPECT_THAT(error(parts), HasSubstr("stored, but"));
  parts = {};
  parts.deflate_content();
  parts.size += 1;
  EXPECT_THAT(error(parts), HasSubstr("unpacks to"));
  parts = {};
  parts.deflate_content();
  parts.size = 0x7fffffff;
  EXPECT_THAT(error(parts), HasSubstr("cannot unpack to 2147483647"));
  parts = {};
  parts.deflate_content();
  parts.size -= 1;
  EXPECT_THAT(error(parts), HasSubstr("2 bytes of data, expected 3"));
  parts = {};
  parts.content = npy(dict("'|u1'", "(9223372036854775807,)"), "abc");
  parts.deflate_content();
  parts.size = static_cast<std::uint32_t>(parts.content.size());
  EXPECT_THAT(error(parts), HasSubstr("3 bytes of data, expected 9223372036854775807"));
}

TEST_F(Npz, lies_about_places_are_input_errors) {
  ZipParts parts;
  parts.member_offset = 0x7fffffff;
  EXPECT_THAT(error(parts), HasSubstr("reaches beyond"));
  parts = {};
  parts.member_offset = 1;
  EXPECT_THAT(error(parts), HasSubstr("zip member header at offset 1 has signature"));
  parts = {};
  parts.directory_shift = 1;
  EXPECT_THAT(error(parts), HasSubstr("zip directory entry at offset 0 has signature"));
  parts = {};
  parts.directory_shift = 1 << 20;
  EXPECT_THAT(error(parts), HasSubstr("reaches beyond"));
  parts = {};
  parts.directory_size_change = 1;
  EXPECT_THAT(error(parts), HasSubstr("its 1 members take"));
  parts = {};
  parts.num_entries = 2000;
  EXPECT_THAT(error(parts), HasSubstr("claims 2000 members"));
  parts = {};
  parts.num_entries = 0xffff;
  EXPECT_THAT(error(parts), HasSubstr("zip64 locator"));
}

TEST_F(Npz, members_that_cannot_be_read_are_refused) {
  ZipParts parts;
  parts.flags = 1;
  EXPECT_THAT(error(parts), HasSubstr("member 'q.npy' is encrypted"));
  parts = {};
  parts.method = 12;
  EXPECT_THAT(error(parts), HasSubstr("packed by method 12, expected 0 (stored) or 8 (deflate)"));
  parts = {};
  parts.deflate_content();
  parts.stored[0] = '\x07';  // block type 3 does not exist
  EXPECT_THAT(error(parts), HasSubstr("deflated data is broken"));
  parts = {};
  parts.content = parts.stored = "no array at all";
  parts.size = parts.stored_size = static_cast<std::uint32_t>(parts.content.size());
  EXPECT_THAT(error(parts), HasSubstr("tensor 'q': does not begin with the npy magic"));
}

TEST_F(Npz, other_members_are_left_out) {
  ZipParts parts;
  parts.name = "q.txt";
  EXPECT_THAT(error(parts), HasSubstr("no tensor 'q'; tensors: none"));
}

}  // namespace
}  // namespace s2o
