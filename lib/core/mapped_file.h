// A file's bytes without reading them: mapped read-only, pages come in as they are touched.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <span>
#include <string>

namespace s2o {

// NOTE: touching a page that another process has cut off from the file raises SIGBUS, as with every
// memory-mapped file (exit_on_truncated_mappings); our own writers replace files by rename, which
// is safe.
class MappedFile {
 public:
  // InputError unless `path` is a regular file that is not empty, or when the mapping fails.
  static std::shared_ptr<const MappedFile> open(const std::filesystem::path& path);
  ~MappedFile();
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;

  std::span<const std::byte> bytes() const { return {data_, size_}; }

 private:
  MappedFile(const std::byte* data, std::size_t size, std::string name);

  const std::byte* data_;
  std::size_t size_;
  std::string name_;
};

// From now on a SIGBUS inside a mapped file ends the process with `exit_code`, after a message on
// stderr that names the file.
void exit_on_truncated_mappings(int exit_code);

}  // namespace s2o
