#include "lib/model/json_file.h"

#include <fmt/format.h>

#include <cstddef>
#include <span>
#include <string_view>

#include "lib/core/error.h"
#include "lib/core/mapped_file.h"
#include "lib/core/strict_json.h"

namespace s2o {
namespace {

constexpr std::size_t kMaxBytes = 1 << 20;  // a config.json has a few KiB

}  // namespace

nlohmann::json read_json_object(const std::filesystem::path& file) {
  const auto mapping = MappedFile::open(file);
  const std::span<const std::byte> bytes = mapping->bytes();
  if (bytes.size() > kMaxBytes) {
    throw InputError(fmt::format("{}: {} bytes, expected JSON of at most {}", file.string(),
                                 bytes.size(), kMaxBytes));
  }
  const std::string_view text(reinterpret_cast<const char*>(bytes.data()), bytes.size());
  nlohmann::json value;
  try {
    value = parse_strict_json_sorted(text);
  } catch (const JsonTextError& failure) {
    throw InputError(fmt::format("{}: {}", file.string(), failure.what()));
  }
  if (!value.is_object()) {
    throw InputError(
        fmt::format("{}: found {}, expected an object", file.string(), value.type_name()));
  }
  return value;
}

}  // namespace s2o
