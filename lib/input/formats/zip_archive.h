// Reading of zip archives, as far as numpy writes them: stored and deflated members, zip64.
// Source: PKWARE APPNOTE 6.3.9.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

namespace s2o {

struct ZipMember {
  std::string name;
  std::uint64_t offset = 0;        // of the stored bytes, from the start of the archive
  std::uint64_t stored_bytes = 0;  // in the archive
  std::uint64_t num_bytes = 0;     // unpacked
  std::uint32_t crc = 0;           // of the unpacked bytes
  bool is_deflated = false;        // else stored as it is
};

// The members in the order of the central directory, each checked to lie inside the archive.
// InputError "<where>: ..." for anything broken, encrypted, split or packed by another method.
std::vector<ZipMember> read_zip_directory(const std::string& where,
                                          std::span<const std::byte> archive);

// The first out.size() unpacked bytes of a member (at most num_bytes), without a checksum.
void unpack_zip_prefix(const std::string& where, std::span<const std::byte> archive,
                       const ZipMember& member, std::span<std::byte> out);
// All of them: InputError unless the member unpacks to exactly out.size() bytes with the right
// checksum.
void unpack_zip_member(const std::string& where, std::span<const std::byte> archive,
                       const ZipMember& member, std::span<std::byte> out);
// InputError unless `unpacked` has the member's checksum.
void check_zip_checksum(const std::string& where, const ZipMember& member,
                        std::span<const std::byte> unpacked);

}  // namespace s2o
