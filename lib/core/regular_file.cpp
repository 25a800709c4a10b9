#include "lib/core/regular_file.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "lib/core/error.h"
#include "lib/core/memory.h"

namespace s2o {
namespace {

constexpr std::size_t kMaxReadBytes = std::size_t{1} << 30;  // of one system call
constexpr std::int64_t kNanoseconds = 1'000'000'000;

int open_for_reading(const std::filesystem::path& path) {
  // O_NONBLOCK: opening a pipe must not wait for its writer.
  const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (fd >= 0) return fd;
  if (errno == ENOENT) throw InputError(fmt::format("{}: no such file", path.string()));
  throw InputError(fmt::format("{}: cannot be opened: {}", path.string(), std::strerror(errno)));
}

}  // namespace

FileDescriptor::~FileDescriptor() {
  if (fd_ >= 0) ::close(fd_);
}

RegularFile::RegularFile(const std::filesystem::path& path)
    : path_(path), fd_(open_for_reading(path)) {
  struct stat status {};
  if (::fstat(fd_.get(), &status) != 0) {
    throw InputError(fmt::format("{}: cannot be read: {}", path.string(), std::strerror(errno)));
  }
  if (S_ISDIR(status.st_mode)) {
    throw InputError(fmt::format("{}: is a folder, expected a file", path.string()));
  }
  if (!S_ISREG(status.st_mode)) {
    throw InputError(fmt::format("{}: is a device or pipe, expected a file", path.string()));
  }
  size_ = static_cast<std::uint64_t>(status.st_size);
  modified_ns_ = status.st_mtim.tv_sec * kNanoseconds + status.st_mtim.tv_nsec;
}

std::size_t RegularFile::read(std::uint64_t offset, void* data, std::size_t num_bytes) const {
  auto* bytes = static_cast<char*>(data);
  std::size_t done = 0;
  while (done < num_bytes) {
    const ssize_t count =
        ::pread(fd_.get(), bytes + done, std::min(num_bytes - done, kMaxReadBytes),
                static_cast<off_t>(offset + done));
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) {
      throw InputError(fmt::format("{}: cannot be read: {}", path_.string(), std::strerror(errno)));
    }
    if (count == 0) break;
    done += static_cast<std::size_t>(count);
  }
  return done;
}

std::uint64_t require_regular_file(const std::filesystem::path& path) {
  const RegularFile file(path);
  if (file.size() == 0) throw InputError(fmt::format("{}: file is empty", path.string()));
  return file.size();
}

std::string read_whole_file(const std::filesystem::path& path) {
  const RegularFile file(path);
  require_memory(file.size(), path.string());
  std::string text(file.size(), '\0');
  text.resize(file.read(0, text.data(), text.size()));
  return text;
}

}  // namespace s2o
