// The one way in which files are opened for reading: whoever names a folder, a device or a pipe
// where a file is meant gets a message at once, not a program that waits or fills the memory.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <string>
#include <utility>

namespace s2o {

class FileDescriptor {
 public:
  explicit FileDescriptor(int fd = -1) : fd_(fd) {}
  FileDescriptor(FileDescriptor&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}
  FileDescriptor& operator=(FileDescriptor&& other) noexcept {
    std::swap(fd_, other.fd_);
    return *this;
  }
  ~FileDescriptor();
  int get() const { return fd_; }

 private:
  int fd_;
};

class RegularFile {
 public:
  // InputError "<path>: ..." unless `path` is a regular file that can be read.
  explicit RegularFile(const std::filesystem::path& path);

  int fd() const { return fd_.get(); }
  std::uint64_t size() const { return size_; }               // bytes, when it was opened
  std::int64_t modified_ns() const { return modified_ns_; }  // since 1970
  const std::filesystem::path& path() const { return path_; }
  // The bytes from `offset` on, as many as there are, at most `num_bytes`. InputError when the
  // system reports a failure.
  std::size_t read(std::uint64_t offset, void* data, std::size_t num_bytes) const;

 private:
  std::filesystem::path path_;
  FileDescriptor fd_;
  std::uint64_t size_ = 0;
  std::int64_t modified_ns_ = 0;
};

// InputError unless `path` is a regular file that can be read and is not empty. Its size in bytes.
std::uint64_t require_regular_file(const std::filesystem::path& path);

// All bytes of a regular file. InputError as above; UnsupportedError when memory does not hold it.
std::string read_whole_file(const std::filesystem::path& path);

}  // namespace s2o
