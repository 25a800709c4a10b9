#include "lib/core/line_file.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "lib/core/error.h"

namespace s2o {
namespace {

FileDescriptor open_for_lines(const std::filesystem::path& file, LineFile::Open open) {
  // O_NONBLOCK: a pipe must not wait for its reader.
  const int flags = O_WRONLY | O_APPEND | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK |
                    (open == LineFile::Open::kCreate ? O_CREAT : 0);
  FileDescriptor fd(::open(file.c_str(), flags, 0666));
  if (fd.get() < 0) {
    throw ConfigError(
        fmt::format("{}: cannot be written: {}", file.string(), std::strerror(errno)));
  }
  struct stat status {};
  if (::fstat(fd.get(), &status) != 0 || !S_ISREG(status.st_mode)) {
    throw ConfigError(fmt::format("{}: cannot be written: is a device or pipe", file.string()));
  }
  return fd;
}

}  // namespace

LineFile::LineFile(const std::filesystem::path& file, Open open)
    : file_(file), fd_(open_for_lines(file, open)) {
  struct stat status {};
  if (::fstat(fd_.get(), &status) == 0) size_ = static_cast<std::uint64_t>(status.st_size);
}

bool LineFile::lock() const {
  // A file system without locks is no reason to refuse the work.
  if (::flock(fd_.get(), LOCK_EX | LOCK_NB) != 0 && errno == EWOULDBLOCK) return false;
  // Another process may have had it, and moved it out of the way, since it was opened.
  return place() == file_.string();
}

void LineFile::truncate(std::uint64_t bytes) {
  if (bytes > size_ || ::ftruncate(fd_.get(), static_cast<off_t>(bytes)) != 0) {
    throw ConfigError(fmt::format("{}: cannot be changed: {}", file_.string(),
                                  bytes > size_ ? "became shorter" : std::strerror(errno)));
  }
  size_ = bytes;
}

void LineFile::append(const std::string& line) {
  const std::string text = line + "\n";
  std::size_t done = 0;
  while (done < text.size()) {
    const ssize_t written = ::write(fd_.get(), text.data() + done, text.size() - done);
    if (written < 0 && errno == EINTR) continue;
    if (written < 0) break;
    done += static_cast<std::size_t>(written);
  }
  if (done != text.size() || ::fsync(fd_.get()) != 0) {
    const std::string reason = std::strerror(errno);
    // Half a line would read as a crash; the result is the same if this fails too.
    [[maybe_unused]] const int ignored = ::ftruncate(fd_.get(), static_cast<off_t>(size_));
    throw UnsupportedError(fmt::format("{}: writing failed: {}", file_.string(), reason));
  }
  size_ += text.size();
  const std::string now = place();
  if (now == file_.string()) return;
  throw UnsupportedError(
      now.empty() ? fmt::format("{}: was removed during the run", file_.string())
                  : fmt::format("{}: was moved to {} during the run", file_.string(), now));
}

std::string LineFile::place() const {
  struct stat ours {};
  struct stat named {};
  if (::fstat(fd_.get(), &ours) != 0 || ours.st_nlink == 0) return "";
  if (::stat(file_.c_str(), &named) == 0 && named.st_dev == ours.st_dev &&
      named.st_ino == ours.st_ino) {
    return file_.string();
  }
  std::error_code ignored;
  return std::filesystem::read_symlink(fmt::format("/proc/self/fd/{}", fd_.get()), ignored)
      .string();
}

}  // namespace s2o
