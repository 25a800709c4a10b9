// A text file that grows by whole lines while a run goes on: what was computed is on disk, and what
// a crash leaves is whole but for the last line.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>

#include "lib/core/regular_file.h"

namespace s2o {

class LineFile {
 public:
  enum class Open { kExisting, kCreate };
  // ConfigError when it cannot be opened, is a link (into a file of somebody else), a device or a
  // pipe. What an existing one holds stays.
  LineFile(const std::filesystem::path& file, Open open);

  const std::filesystem::path& path() const { return file_; }
  // For this process alone, as long as this lives. False: another one has it.
  [[nodiscard]] bool lock() const;
  // Cuts off what comes after `bytes`. ConfigError when that cannot be done.
  void truncate(std::uint64_t bytes);
  // Adds `line` and its end; on disk when this returns. UnsupportedError when the disk is full, and
  // the lines before stay whole; or when the file is no longer where it was.
  void append(const std::string& line);
  // Where the file is: its path, the one that it was moved to, or "" when it was removed.
  std::string place() const;

 private:
  std::filesystem::path file_;
  FileDescriptor fd_;
  std::uint64_t size_ = 0;
};

}  // namespace s2o
