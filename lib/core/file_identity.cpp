#include "lib/core/file_identity.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <string_view>
#include <vector>

#include "lib/core/error.h"
#include "lib/core/random.h"
#include "lib/core/regular_file.h"
#include "lib/core/text.h"

namespace s2o {
namespace {

namespace fs = std::filesystem;

constexpr std::uint64_t kChunkBytes = 1 << 20;
constexpr std::uint64_t kSampleBytes = 16 << 10;
constexpr std::uint64_t kNumSamples = 256;
constexpr std::string_view kIndexExtension = ".safetensors.index.json";
constexpr std::array<std::string_view, 4> kTensorExtensions = {".safetensors", ".gguf", ".npy",
                                                               kIndexExtension};

class Hasher {
 public:
  explicit Hasher(const RegularFile& file) : file_(file), state_(mix_bits(file.size())) {}

  void add(std::uint64_t offset, std::uint64_t num_bytes) {
    while (num_bytes > 0) {
      const std::uint64_t wanted = std::min(num_bytes, kChunkBytes);
      std::fill(buffer_.begin(), buffer_.end(), 0);
      const std::size_t count = file_.read(offset, buffer_.data(), wanted);
      for (std::size_t word = 0; word < (count + 7) / 8; ++word) {
        state_ = mix_bits(state_ ^ buffer_[word]);
      }
      if (count < wanted) return;  // the file has become shorter
      offset += wanted;
      num_bytes -= wanted;
    }
  }
  std::string text() const { return fmt::format("{:016x}", state_); }

 private:
  const RegularFile& file_;
  std::uint64_t state_;
  std::vector<std::uint64_t> buffer_ = std::vector<std::uint64_t>(kChunkBytes / 8);
};

FileIdentity identity_of_file(const fs::path& path) {
  const RegularFile file(path);
  Hasher hasher(file);
  if (file.size() <= kWholeHashBytes) {
    hasher.add(0, file.size());
    return {.num_bytes = file.size(), .hash = hasher.text()};
  }
  hasher.add(0, kChunkBytes);
  const std::uint64_t last = file.size() - kSampleBytes;
  for (std::uint64_t i = 1; i <= kNumSamples; ++i) {
    // 128 bits: the product of two sizes.
    const auto offset = static_cast<unsigned __int128>(last) * i / kNumSamples;
    hasher.add(static_cast<std::uint64_t>(offset), kSampleBytes);
  }
  return {.num_bytes = file.size(), .hash = hasher.text(), .modified_ns = file.modified_ns()};
}

bool is_part(const fs::path& path) {
  const std::string name = path.filename().string();
  return name == "config.json" ||
         std::any_of(kTensorExtensions.begin(), kTensorExtensions.end(),
                     [&name](std::string_view extension) { return name.ends_with(extension); });
}

FileIdentity identity_of_folder(const fs::path& folder) {
  std::vector<fs::path> files;
  std::error_code error;
  for (fs::directory_iterator entry(folder, error), end; !error && entry != end;
       entry.increment(error)) {
    if (is_part(entry->path())) files.push_back(entry->path());
  }
  if (error) {
    throw InputError(fmt::format("{}: cannot be listed: {}", folder.string(), error.message()));
  }
  std::sort(files.begin(), files.end());  // folders have no order
  FileIdentity whole;
  std::string parts;
  for (const fs::path& file : files) {
    const FileIdentity part = identity_of_file(file);
    whole.num_bytes += part.num_bytes;
    whole.modified_ns = std::max(whole.modified_ns, part.modified_ns);
    parts += fmt::format("{}\n{}\n", file.filename().string(), part.hash);
  }
  whole.hash = hash_hex(parts);
  return whole;
}

}  // namespace

FileIdentity file_identity(const fs::path& path) {
  std::error_code ignored;  // what cannot be asked here fails with a message when it is opened
  if (fs::is_directory(path, ignored)) return identity_of_folder(path);
  if (path.string().ends_with(kIndexExtension)) return identity_of_folder(path.parent_path());
  return identity_of_file(path);
}

}  // namespace s2o
