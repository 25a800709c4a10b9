#include "lib/core/atomic_file.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

#include "lib/core/error.h"
#include "lib/core/text.h"

namespace s2o {
namespace {

// Linux writes at most 2^31 - 4096 bytes a call.
constexpr std::size_t kMaxWriteBytes = std::size_t{1} << 30;
constexpr int kMaxNameAttempts = 100;
constexpr std::string_view kTemporaryMark = ".tmp-";  // between the name and the process

std::filesystem::path folder_of(const std::filesystem::path& path) {
  return path.has_parent_path() ? path.parent_path() : std::filesystem::path(".");
}

// Locks a new temporary file. False when another process took it for a leftover before that.
bool is_locked_in_place(int fd) {
  // A file system without locks has nobody who could think so.
  while (::flock(fd, LOCK_EX) != 0 && errno == EINTR) {
  }
  struct stat status {};
  return ::fstat(fd, &status) == 0 && status.st_nlink > 0;
}

}  // namespace

AtomicFile::AtomicFile(std::filesystem::path path) : path_(std::move(path)) {
  if (path_.empty()) throw ConfigError("a file with an empty name cannot be written");
  const std::filesystem::path folder = folder_of(path_);
  std::error_code ignored;
  if (!std::filesystem::is_directory(folder, ignored)) {
    throw ConfigError(
        fmt::format("{}: cannot be written: no folder '{}'", path_.string(), folder.string()));
  }
  if (!path_.has_filename() || std::filesystem::is_directory(path_, ignored)) {
    throw ConfigError(fmt::format("{}: cannot be written: is a folder", path_.string()));
  }
  // Somebody reads from it, or meant another name: a file must not take its place.
  const auto status = std::filesystem::status(path_, ignored);
  if (std::filesystem::exists(status) && !std::filesystem::is_regular_file(status)) {
    throw ConfigError(fmt::format("{}: cannot be written: is a device or pipe", path_.string()));
  }
  const std::string name = path_.filename().string();
  remove_leftovers(folder, name);
  for (int attempt = 0; attempt < kMaxNameAttempts && fd_ < 0; ++attempt) {
    temporary_ = folder / fmt::format(".{}{}{}-{}", name, kTemporaryMark, ::getpid(), attempt);
    fd_ = ::open(temporary_.c_str(), O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
    if (fd_ < 0 && errno != EEXIST) break;
    if (fd_ >= 0 && !is_locked_in_place(fd_)) ::close(std::exchange(fd_, -1));
  }
  if (fd_ < 0) {
    throw ConfigError(
        fmt::format("{}: cannot be written: {}", path_.string(), std::strerror(errno)));
  }
}

void remove_leftovers(const std::filesystem::path& folder, const std::string& name) {
  const std::string prefix = "." + name;
  std::error_code error;
  for (std::filesystem::directory_iterator entry(folder, error), end; !error && entry != end;
       entry.increment(error)) {
    const std::string file = entry->path().filename().string();
    const std::size_t mark = file.rfind(kTemporaryMark);
    if (mark == std::string::npos || !file.starts_with(prefix)) continue;
    if (!name.empty() && mark != prefix.size()) continue;
    if (file.find_first_not_of("0123456789-", mark + kTemporaryMark.size()) != std::string::npos) {
      continue;
    }
    const int fd = ::open(entry->path().c_str(), O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
    if (fd < 0) continue;
    // Its writer holds a lock as long as it lives.
    if (::flock(fd, LOCK_EX | LOCK_NB) == 0) ::unlink(entry->path().c_str());
    ::close(fd);
  }
}

AtomicFile::~AtomicFile() {
  if (fd_ < 0) return;
  ::close(fd_);
  ::unlink(temporary_.c_str());
}

void AtomicFile::write(const void* data, std::size_t num_bytes) {
  const auto* bytes = static_cast<const char*>(data);
  while (num_bytes > 0) {
    const ssize_t written = ::write(fd_, bytes, std::min(num_bytes, kMaxWriteBytes));
    if (written < 0 && errno == EINTR) continue;
    if (written < 0) {
      throw UnsupportedError(fmt::format("{}: writing failed with {} bytes to go: {}",
                                         path_.string(), num_bytes, std::strerror(errno)));
    }
    bytes += written;
    num_bytes -= static_cast<std::size_t>(written);
  }
}

void AtomicFile::commit() {
  if (::fsync(fd_) != 0) {
    throw UnsupportedError(
        fmt::format("{}: writing failed: {}", path_.string(), std::strerror(errno)));
  }
  if (::rename(temporary_.c_str(), path_.c_str()) != 0) {
    throw ConfigError(
        fmt::format("{}: cannot be replaced: {}", path_.string(), std::strerror(errno)));
  }
  ::close(std::exchange(fd_, -1));
  // The rename itself is durable once the folder is flushed; a file system that cannot do that
  // has still renamed.
  const int folder = ::open(folder_of(path_).c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (folder >= 0) {
    ::fsync(folder);
    ::close(folder);
  }
}

void require_disk_space(const std::filesystem::path& path, std::uint64_t num_bytes) {
  std::error_code error;
  const auto space = std::filesystem::space(folder_of(path), error);
  if (error || num_bytes <= space.available) return;
  throw UnsupportedError(
      fmt::format("{}: needs {} bytes ({}) of disk space, {} bytes ({}) are free", path.string(),
                  num_bytes, bytes_text(static_cast<double>(num_bytes)), space.available,
                  bytes_text(static_cast<double>(space.available))));
}

}  // namespace s2o
