// A file that appears whole or not at all: written beside its place, flushed to disk, renamed.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <string>
#include <string_view>

namespace s2o {

// What a process that was killed left behind goes away when the next one writes the same file.
//
// Errors: ConfigError when the file cannot be created or replaced (no such folder, no permission,
// the path is a folder): the user named it. UnsupportedError when writing fails (disk full).
class AtomicFile {
 public:
  // Creates the temporary file, in the folder of `path`.
  explicit AtomicFile(std::filesystem::path path);
  // Removes the temporary file unless it was committed.
  ~AtomicFile();
  AtomicFile(const AtomicFile&) = delete;
  AtomicFile& operator=(const AtomicFile&) = delete;

  void write(const void* data, std::size_t num_bytes);
  void write(std::string_view text) { write(text.data(), text.size()); }
  // For writers that open files themselves (HDF5): they write here, close, then commit() is called.
  const std::filesystem::path& temporary_path() const { return temporary_; }
  // Flushes to disk and renames over the target.
  void commit();

 private:
  std::filesystem::path path_;
  std::filesystem::path temporary_;
  int fd_ = -1;
};

// Removes temporary files of AtomicFile in a folder whose writers are gone. With a `name`, only
// those of that file.
void remove_leftovers(const std::filesystem::path& folder, const std::string& name = "");

// UnsupportedError when the file system of `path` has not that many bytes left.
void require_disk_space(const std::filesystem::path& path, std::uint64_t num_bytes);

}  // namespace s2o
