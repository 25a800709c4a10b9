#include "lib/core/mapped_file.h"

#include <fmt/format.h>
#include <sys/mman.h>

#include <cerrno>
#include <cstring>
#include <string>
#include <utility>

#include "lib/core/error.h"
#include "lib/core/regular_file.h"

namespace s2o {

std::shared_ptr<const MappedFile> MappedFile::open(const std::filesystem::path& path) {
  const RegularFile file(path);
  const std::uint64_t size = file.size();
  if (size == 0) throw InputError(fmt::format("{}: file is empty", path.string()));
  if (!std::in_range<std::size_t>(size)) {
    throw InputError(fmt::format("{}: {} bytes are too many to map", path.string(), size));
  }
  void* data = ::mmap(nullptr, size, PROT_READ, MAP_PRIVATE, file.fd(), 0);
  if (data == MAP_FAILED) {
    throw InputError(fmt::format("{}: cannot be mapped: {}", path.string(), std::strerror(errno)));
  }
  return std::shared_ptr<const MappedFile>(
      new MappedFile(static_cast<const std::byte*>(data), size));
}

MappedFile::~MappedFile() { ::munmap(const_cast<std::byte*>(data_), size_); }

}  // namespace s2o
