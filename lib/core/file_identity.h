// What tells one content of a file from another, cheap enough for files of any size.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>

namespace s2o {

struct FileIdentity {
  std::uint64_t num_bytes = 0;
  // Of the size and the content: of all bytes up to kWholeHashBytes, else of the first MiB
  // (headers), the last bytes and samples at even distances. 16 hexadecimal digits.
  std::string hash;
  // Nanoseconds since 1970 where the hash saw samples only; 0 where it saw every byte.
  std::int64_t modified_ns = 0;
};
inline constexpr std::uint64_t kWholeHashBytes = 32 << 20;

// Of a regular file; of an index of sharded tensors with its shards; of a folder with the tensor
// files and the config.json that lie directly in it. InputError when something cannot be read.
FileIdentity file_identity(const std::filesystem::path& path);

}  // namespace s2o
