// A file's bytes without reading them: mapped read-only, pages come in as they are touched.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <span>

namespace s2o {

// NOTE: a file that another process truncates while it is mapped kills this process (SIGBUS), as
// with every memory-mapped file; our own writers replace files by rename, which is safe.
class MappedFile {
 public:
  // InputError unless `path` is a regular file that is not empty, or when the mapping fails.
  static std::shared_ptr<const MappedFile> open(const std::filesystem::path& path);
  ~MappedFile();
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;

  std::span<const std::byte> bytes() const { return {data_, size_}; }

 private:
  MappedFile(const std::byte* data, std::size_t size) : data_(data), size_(size) {}

  const std::byte* data_;
  std::size_t size_;
};

}  // namespace s2o
