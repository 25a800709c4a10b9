#include "lib/input/formats/zip_archive.h"

#include <fmt/format.h>
#include <zlib.h>

#include <algorithm>
#include <cstring>
#include <optional>
#include <string_view>
#include <utility>

#include "lib/core/error.h"

namespace s2o {
namespace {

constexpr std::uint32_t kMemberSignature = 0x04034b50;
constexpr std::uint32_t kDirectorySignature = 0x02014b50;
constexpr std::uint32_t kEndSignature = 0x06054b50;
constexpr std::uint32_t kEnd64Signature = 0x06064b50;
constexpr std::uint32_t kLocator64Signature = 0x07064b50;
constexpr std::size_t kMemberHeaderBytes = 30;
constexpr std::size_t kDirectoryEntryBytes = 46;
constexpr std::size_t kEndBytes = 22;
constexpr std::size_t kEnd64Bytes = 56;
constexpr std::size_t kLocator64Bytes = 20;
constexpr std::uint64_t kMaxCommentBytes = 0xffff;
constexpr std::uint32_t kIn64 = 0xffffffffu;  // "see the zip64 record"
constexpr std::uint16_t kZip64Id = 1;
constexpr std::uint16_t kEncryptedFlag = 1;
constexpr std::uint16_t kStored = 0;
constexpr std::uint16_t kDeflated = 8;
// No deflate stream unpacks to more than 1032 times its size.
constexpr std::uint64_t kMaxDeflateRatio = 1032;
// zlib counts in 32 bits.
constexpr std::size_t kMaxZlibBytes = std::size_t{1} << 30;

// Little-endian integers out of a range of bytes, every access checked.
class Reader {
 public:
  Reader(std::string where, std::span<const std::byte> bytes)
      : where_(std::move(where)), bytes_(bytes) {}

  template <class T>
  T get(std::uint64_t offset) const {
    T value;
    std::memcpy(&value, slice(offset, sizeof value).data(), sizeof value);
    return value;
  }
  std::span<const std::byte> slice(std::uint64_t offset, std::uint64_t count) const {
    if (offset > bytes_.size() || count > bytes_.size() - offset) {
      throw InputError(fmt::format("{}: zip record at offset {} reaches beyond the {} bytes there",
                                   where_, offset, bytes_.size()));
    }
    return bytes_.subspan(offset, count);
  }
  void require_signature(std::uint64_t offset, std::uint32_t signature, const char* what) const {
    const auto found = get<std::uint32_t>(offset);
    if (found == signature) return;
    throw InputError(
        fmt::format("{}: zip {} at offset {} has signature {:#010x}, expected {:#010x}", where_,
                    what, offset, found, signature));
  }
  std::uint64_t size() const { return bytes_.size(); }
  const std::string& where() const { return where_; }

 private:
  std::string where_;
  std::span<const std::byte> bytes_;
};

// The end record is the last thing in the file, but for a comment whose length it tells.
std::uint64_t find_end_record(const Reader& file) {
  if (file.size() >= kEndBytes) {
    const std::uint64_t last = file.size() - kEndBytes;
    const std::uint64_t first = last - std::min(last, kMaxCommentBytes);
    for (std::uint64_t offset = last + 1; offset-- > first;) {
      if (file.get<std::uint32_t>(offset) == kEndSignature &&
          file.get<std::uint16_t>(offset + 20) == last - offset) {
        return offset;
      }
    }
  }
  throw InputError(
      fmt::format("{}: no end of a zip directory in {} bytes: no zip archive, or "
                  "truncated",
                  file.where(), file.size()));
}

struct Directory {
  std::uint64_t num_entries = 0;
  std::uint64_t num_bytes = 0;
  std::uint64_t offset = 0;
};

Directory find_directory(const Reader& file) {
  const std::uint64_t end = find_end_record(file);
  Directory directory{.num_entries = file.get<std::uint16_t>(end + 10),
                      .num_bytes = file.get<std::uint32_t>(end + 12),
                      .offset = file.get<std::uint32_t>(end + 16)};
  std::uint32_t disk = file.get<std::uint16_t>(end + 4);
  if (directory.num_entries == 0xffff || directory.num_bytes == kIn64 ||
      directory.offset == kIn64) {
    if (end < kLocator64Bytes) {
      throw InputError(file.where() + ": zip64 end of the directory is missing");
    }
    const std::uint64_t locator = end - kLocator64Bytes;
    file.require_signature(locator, kLocator64Signature, "zip64 locator");
    const auto end64 = file.get<std::uint64_t>(locator + 8);
    file.slice(end64, kEnd64Bytes);
    file.require_signature(end64, kEnd64Signature, "zip64 end of the directory");
    disk = file.get<std::uint32_t>(end64 + 16);
    directory = {.num_entries = file.get<std::uint64_t>(end64 + 32),
                 .num_bytes = file.get<std::uint64_t>(end64 + 40),
                 .offset = file.get<std::uint64_t>(end64 + 48)};
  }
  if (disk != 0) throw InputError(file.where() + ": zip archive is split over several files");
  if (directory.num_entries > directory.num_bytes / kDirectoryEntryBytes) {
    throw InputError(fmt::format("{}: zip directory of {} bytes claims {} members", file.where(),
                                 directory.num_bytes, directory.num_entries));
  }
  return directory;
}

// Sizes and offset that do not fit in 32 bits stand in the extra field, in this order.
void apply_zip64(const Reader& extra, ZipMember& member) {
  for (std::uint64_t at = 0; at + 4 <= extra.size();) {
    const auto id = extra.get<std::uint16_t>(at);
    const auto size = extra.get<std::uint16_t>(at + 2);
    if (id == kZip64Id) {
      const Reader record(extra.where(), extra.slice(at + 4, size));
      std::uint64_t next = 0;
      for (std::uint64_t* field : {&member.num_bytes, &member.stored_bytes, &member.offset}) {
        if (*field != kIn64) continue;
        *field = record.get<std::uint64_t>(next);
        next += 8;
      }
      return;
    }
    at += 4 + std::uint64_t{size};
  }
}

// From the entry in the central directory; `offset` becomes that of the data, behind the member's
// own header, whose sizes may be unset and are not used.
ZipMember parse_member(const Reader& file, const Reader& directory, std::uint64_t at,
                       std::uint64_t& next) {
  directory.require_signature(at, kDirectorySignature, "directory entry");
  const auto flags = directory.get<std::uint16_t>(at + 8);
  const auto method = directory.get<std::uint16_t>(at + 10);
  const auto name_bytes = directory.get<std::uint16_t>(at + 28);
  const auto extra_bytes = directory.get<std::uint16_t>(at + 30);
  const auto comment_bytes = directory.get<std::uint16_t>(at + 32);
  ZipMember member{.name = {},
                   .offset = directory.get<std::uint32_t>(at + 42),
                   .stored_bytes = directory.get<std::uint32_t>(at + 20),
                   .num_bytes = directory.get<std::uint32_t>(at + 24),
                   .crc = directory.get<std::uint32_t>(at + 16),
                   .is_deflated = method == kDeflated};
  const auto name = directory.slice(at + kDirectoryEntryBytes, name_bytes);
  member.name.assign(reinterpret_cast<const char*>(name.data()), name.size());
  const std::string where = fmt::format("{}: member '{}'", file.where(), member.name);
  if (flags & kEncryptedFlag) throw InputError(where + " is encrypted");
  if (method != kStored && method != kDeflated) {
    throw InputError(
        fmt::format("{}: packed by method {}, expected 0 (stored) or 8 (deflate)", where, method));
  }
  apply_zip64(Reader(where, directory.slice(at + kDirectoryEntryBytes + name_bytes, extra_bytes)),
              member);
  const Reader members(where, file.slice(0, file.size()));
  members.require_signature(member.offset, kMemberSignature, "member header");
  member.offset += kMemberHeaderBytes + members.get<std::uint16_t>(member.offset + 26) +
                   members.get<std::uint16_t>(member.offset + 28);
  members.slice(member.offset, member.stored_bytes);
  if (!member.is_deflated && member.num_bytes != member.stored_bytes) {
    throw InputError(fmt::format("{}: stored, but {} bytes claim to be {}", where,
                                 member.stored_bytes, member.num_bytes));
  }
  if (member.is_deflated && member.num_bytes / kMaxDeflateRatio > member.stored_bytes) {
    throw InputError(fmt::format("{}: {} bytes cannot unpack to {}", where, member.stored_bytes,
                                 member.num_bytes));
  }
  next = at + kDirectoryEntryBytes + name_bytes + extra_bytes + comment_bytes;
  return member;
}

class Inflater {
 public:
  Inflater(std::string where, std::span<const std::byte> packed)
      : where_(std::move(where)), packed_(packed) {
    // Negative window bits: a raw stream, as zip holds it.
    if (inflateInit2(&stream_, -MAX_WBITS) != Z_OK) {
      throw UnsupportedError(where_ + ": no memory for zlib");
    }
  }
  ~Inflater() { inflateEnd(&stream_); }
  Inflater(const Inflater&) = delete;
  Inflater& operator=(const Inflater&) = delete;

  // Bytes written; fewer than out.size() only when the stream ends before.
  std::size_t unpack(std::span<std::byte> out) {
    std::size_t done = 0;
    while (done < out.size() && !at_end_) {
      const std::size_t in_bytes = std::min(packed_.size(), kMaxZlibBytes);
      const std::size_t out_bytes = std::min(out.size() - done, kMaxZlibBytes);
      stream_.next_in = const_cast<Bytef*>(reinterpret_cast<const Bytef*>(packed_.data()));
      stream_.avail_in = static_cast<uInt>(in_bytes);
      stream_.next_out = reinterpret_cast<Bytef*>(out.data() + done);
      stream_.avail_out = static_cast<uInt>(out_bytes);
      const int status = inflate(&stream_, Z_NO_FLUSH);
      const std::size_t consumed = in_bytes - stream_.avail_in;
      const std::size_t produced = out_bytes - stream_.avail_out;
      packed_ = packed_.subspan(consumed);
      done += produced;
      at_end_ = status == Z_STREAM_END;
      if (status != Z_OK && status != Z_STREAM_END) {
        throw InputError(fmt::format("{}: deflated data is broken: {}", where_,
                                     stream_.msg != nullptr ? stream_.msg : "it ends too early"));
      }
    }
    return done;
  }

 private:
  std::string where_;
  std::span<const std::byte> packed_;  // not yet consumed
  z_stream stream_{};
  bool at_end_ = false;
};

}  // namespace

std::vector<ZipMember> read_zip_directory(const std::string& where,
                                          std::span<const std::byte> archive) {
  const Reader file(where, archive);
  const Directory found = find_directory(file);
  const Reader directory(where + ": directory", file.slice(found.offset, found.num_bytes));
  std::vector<ZipMember> members;
  std::uint64_t at = 0;
  for (std::uint64_t i = 0; i < found.num_entries; ++i) {
    members.push_back(parse_member(file, directory, at, at));
  }
  if (at != found.num_bytes) {
    throw InputError(fmt::format("{}: zip directory has {} bytes, its {} members take {}", where,
                                 found.num_bytes, found.num_entries, at));
  }
  return members;
}

void unpack_zip_prefix(const std::string& where, std::span<const std::byte> archive,
                       const ZipMember& member, std::span<std::byte> out) {
  const auto packed = archive.subspan(member.offset, member.stored_bytes);
  std::size_t done = 0;
  if (member.is_deflated) {
    done = Inflater(where, packed).unpack(out);
  } else {
    done = std::min(out.size(), packed.size());
    std::copy_n(packed.begin(), done, out.begin());  // either may be empty, without an address
  }
  if (done != out.size()) {
    throw InputError(fmt::format("{}: unpacks to {} bytes, expected {}", where, done, out.size()));
  }
}

void unpack_zip_member(const std::string& where, std::span<const std::byte> archive,
                       const ZipMember& member, std::span<std::byte> out) {
  unpack_zip_prefix(where, archive, member, out);
  check_zip_checksum(where, member, out);
}

void check_zip_checksum(const std::string& where, const ZipMember& member,
                        std::span<const std::byte> unpacked) {
  const auto crc = static_cast<std::uint32_t>(
      crc32_z(0, reinterpret_cast<const Bytef*>(unpacked.data()), unpacked.size()));
  if (crc == member.crc) return;
  throw InputError(fmt::format("{}: checksum is {:08x}, the archive says {:08x}: data is damaged",
                               where, crc, member.crc));
}

}  // namespace s2o
