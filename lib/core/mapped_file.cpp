#include "lib/core/mapped_file.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <string>
#include <utility>

#include "lib/core/error.h"

namespace s2o {
namespace {

class FileDescriptor {
 public:
  explicit FileDescriptor(int fd) : fd_(fd) {}
  ~FileDescriptor() { ::close(fd_); }
  FileDescriptor(const FileDescriptor&) = delete;
  FileDescriptor& operator=(const FileDescriptor&) = delete;
  int get() const { return fd_; }

 private:
  int fd_;
};

int open_for_reading(const std::filesystem::path& path) {
  // O_NONBLOCK: opening a pipe must not wait for its writer.
  const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (fd >= 0) return fd;
  if (errno == ENOENT) throw InputError(fmt::format("{}: no such file", path.string()));
  throw InputError(fmt::format("{}: cannot be opened: {}", path.string(), std::strerror(errno)));
}

std::uint64_t size_of(int fd, const std::filesystem::path& path) {
  struct stat status {};
  if (::fstat(fd, &status) != 0) {
    throw InputError(fmt::format("{}: cannot be read: {}", path.string(), std::strerror(errno)));
  }
  if (S_ISDIR(status.st_mode)) {
    throw InputError(fmt::format("{}: is a folder, expected a file", path.string()));
  }
  if (!S_ISREG(status.st_mode)) {
    throw InputError(fmt::format("{}: is a device or pipe, expected a file", path.string()));
  }
  if (status.st_size == 0) throw InputError(fmt::format("{}: file is empty", path.string()));
  return static_cast<std::uint64_t>(status.st_size);
}

}  // namespace

std::uint64_t require_regular_file(const std::filesystem::path& path) {
  const FileDescriptor fd(open_for_reading(path));
  return size_of(fd.get(), path);
}

std::shared_ptr<const MappedFile> MappedFile::open(const std::filesystem::path& path) {
  const FileDescriptor fd(open_for_reading(path));
  const std::uint64_t size = size_of(fd.get(), path);
  if (!std::in_range<std::size_t>(size)) {
    throw InputError(fmt::format("{}: {} bytes are too many to map", path.string(), size));
  }
  void* data = ::mmap(nullptr, size, PROT_READ, MAP_PRIVATE, fd.get(), 0);
  if (data == MAP_FAILED) {
    throw InputError(fmt::format("{}: cannot be mapped: {}", path.string(), std::strerror(errno)));
  }
  return std::shared_ptr<const MappedFile>(
      new MappedFile(static_cast<const std::byte*>(data), size));
}

MappedFile::~MappedFile() { ::munmap(const_cast<std::byte*>(data_), size_); }

}  // namespace s2o
