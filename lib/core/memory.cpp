#include "lib/core/memory.h"

#include <fmt/format.h>

#include <algorithm>
#include <fstream>
#include <limits>
#include <optional>
#include <string_view>

#include "lib/core/error.h"
#include "lib/core/text.h"

namespace s2o {
namespace {

constexpr std::uint64_t kUnknown = std::numeric_limits<std::uint64_t>::max();

// The number after `key` at the start of a line ("MemAvailable:   123 kB"); with an empty key, the
// first number of the file. Nothing when there is none ("max").
std::optional<std::uint64_t> number_in(const char* file, std::string_view key) {
  std::ifstream stream(file);
  std::string word;
  while (stream) {
    if (!key.empty() && !(stream >> word)) return {};
    if (key.empty() || word == key) {
      std::uint64_t number = 0;
      if (stream >> number) return number;
      return {};
    }
  }
  return {};
}

// What a control group still allows. Pages of cached files are given back under pressure, so they
// do not count as used.
std::uint64_t group_bytes(const char* limit_file, const char* usage_file, const char* stat_file) {
  const auto limit = number_in(limit_file, "");
  const auto usage = number_in(usage_file, "");
  if (!limit || !usage) return kUnknown;
  const std::uint64_t cached = number_in(stat_file, "inactive_file").value_or(0) +
                               number_in(stat_file, "active_file").value_or(0);
  const std::uint64_t used = *usage - std::min(*usage, cached);
  return *limit - std::min(*limit, used);
}

}  // namespace

std::uint64_t available_memory_bytes() {
  const auto kibibytes = number_in("/proc/meminfo", "MemAvailable:");
  const std::uint64_t system = kibibytes ? *kibibytes * 1024 : kUnknown;
  const std::uint64_t group_v2 = group_bytes(
      "/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current", "/sys/fs/cgroup/memory.stat");
  const std::uint64_t group_v1 = group_bytes("/sys/fs/cgroup/memory/memory.limit_in_bytes",
                                             "/sys/fs/cgroup/memory/memory.usage_in_bytes",
                                             "/sys/fs/cgroup/memory/memory.stat");
  return std::min({system, group_v2, group_v1});
}

void require_memory(std::uint64_t num_bytes, const std::string& what) {
  const std::uint64_t free_bytes = available_memory_bytes();
  if (num_bytes <= free_bytes) return;
  throw UnsupportedError(fmt::format("{}: needs {} bytes of memory ({}), {} bytes ({}) are free",
                                     what, num_bytes, bytes_text(static_cast<double>(num_bytes)),
                                     free_bytes, bytes_text(static_cast<double>(free_bytes))));
}

}  // namespace s2o
