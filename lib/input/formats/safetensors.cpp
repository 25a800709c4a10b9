// The safetensors format: 8 bytes little-endian length N, N bytes of JSON, then the data.
//   {"__metadata__": {"key": "text"}, "name": {"dtype": "BF16", "shape": [2, 3], "data_offsets":
//   [0, 12]}}
// Offsets count from the end of the header; the tensors cover the data without gap or overlap. A
// sharded set is an index file, {"weight_map": {"name": "model-00001-of-00002.safetensors"}},
// beside its shards. Source: the format's README and its reference parser
// (huggingface/safetensors).
#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <limits>
#include <map>
#include <optional>
#include <utility>

#include "lib/core/atomic_file.h"
#include "lib/core/error.h"
#include "lib/core/mapped_file.h"
#include "lib/core/strict_json.h"
#include "lib/core/text.h"
#include "lib/input/formats/tensor_table.h"

namespace s2o {
namespace {

using nlohmann::json;

constexpr std::size_t kLengthBytes = 8;
constexpr std::uint64_t kMaxHeaderBytes = 100'000'000;  // as the reference parser
constexpr std::size_t kDataAlignment = 64;              // of our own files; readers need none
constexpr const char* kMetadataKey = "__metadata__";
constexpr const char* kIndexExtension = ".safetensors.index.json";

constexpr std::array kDTypes = {DType::kF64, DType::kF32, DType::kF16, DType::kBF16,
                                DType::kI64, DType::kI32, DType::kU32, DType::kU16,
                                DType::kI16, DType::kU8,  DType::kI8,  DType::kBool};

json parse_json(const std::string& where, std::string_view text) {
  try {
    return parse_strict_json_sorted(text);
  } catch (const JsonTextError& error) {
    throw InputError(fmt::format("{}: {}", where, error.what()));
  }
}

// Nothing for a dtype that we do not have: the format has more of them from time to time.
std::optional<DType> parse_dtype(const std::string& where, const json& value) {
  if (!value.is_string()) {
    throw InputError(fmt::format("{}: dtype is a {}, expected a string", where, value.type_name()));
  }
  for (const DType dtype : kDTypes) {
    if (value == dtype_name(dtype)) return dtype;
  }
  return std::nullopt;
}

std::string unknown_dtype(const std::string& where, const json& value) {
  std::vector<std::string> known;
  for (const DType dtype : kDTypes) known.emplace_back(dtype_name(dtype));
  return fmt::format("{}: dtype is '{}', expected one of: {}", where, value.get<std::string>(),
                     join(known));
}

// A list of integers in [0, 2^63).
std::vector<std::int64_t> parse_sizes(const std::string& where, const json& value) {
  if (!value.is_array()) {
    throw InputError(fmt::format("{} is a {}, expected a list", where, value.type_name()));
  }
  std::vector<std::int64_t> sizes;
  for (const json& element : value) {
    if (!element.is_number_unsigned() ||
        !std::in_range<std::int64_t>(element.get<std::uint64_t>())) {
      throw InputError(
          fmt::format("{} holds {}, expected integers in [0, 2^63)", where, element.dump()));
    }
    sizes.push_back(element.get<std::int64_t>());
  }
  return sizes;
}

struct Entry {
  TensorInfo info;
  std::uint64_t begin = 0;  // from the end of the header
  std::string problem;      // why the tensor cannot be read, "" if it can
};

Entry parse_entry(const std::string& file, const std::string& name, const json& value) {
  const std::string where = tensor_place(file, name);
  if (!value.is_object()) {
    throw InputError(
        fmt::format("{}: header entry is a {}, expected an object", where, value.type_name()));
  }
  for (const char* key : {"dtype", "shape", "data_offsets"}) {
    if (!value.contains(key)) throw InputError(fmt::format("{}: '{}' is missing", where, key));
  }
  if (value.size() != 3) {
    throw InputError(where + ": header entry has keys besides 'dtype', 'shape', 'data_offsets'");
  }
  Entry entry;
  entry.info.name = name;
  entry.info.shape = parse_sizes(where + ": shape", value["shape"]);
  const auto offsets = parse_sizes(where + ": data_offsets", value["data_offsets"]);
  if (offsets.size() != 2 || offsets[0] > offsets[1]) {
    throw InputError(fmt::format("{}: data_offsets are {}, expected [begin, end] with begin <= end",
                                 where, shape_text(offsets)));
  }
  entry.begin = static_cast<std::uint64_t>(offsets[0]);
  const auto spanned = static_cast<std::uint64_t>(offsets[1] - offsets[0]);
  const std::optional<DType> dtype = parse_dtype(where, value["dtype"]);
  if (!dtype) {  // no size to check against
    entry.info.num_bytes = spanned;
    entry.problem = unknown_dtype(where, value["dtype"]);
    return entry;
  }
  entry.info.dtype = *dtype;
  entry.info.num_bytes = checked_tensor_bytes(where, entry.info.shape, entry.info.dtype);
  if (spanned != entry.info.num_bytes) {
    throw InputError(fmt::format("{}: data_offsets span {} bytes, expected {} for {} of shape {}",
                                 where, spanned, entry.info.num_bytes, dtype_name(entry.info.dtype),
                                 shape_text(entry.info.shape)));
  }
  return entry;
}

TensorMetadata parse_metadata(const std::string& file, const json& value) {
  TensorMetadata metadata;
  if (!value.is_object()) throw InputError(fmt::format("{}: {} is no object", file, kMetadataKey));
  for (const auto& [key, text] : value.items()) {
    if (!text.is_string()) {
      throw InputError(fmt::format("{}: {}.{} is a {}, expected a string", file, kMetadataKey, key,
                                   text.type_name()));
    }
    metadata[key] = text.get<std::string>();
  }
  return metadata;
}

// The tensors have to tile [0, data_bytes) exactly; `entries` are in the order of their data.
void check_coverage(const std::string& file, const std::vector<Entry>& entries,
                    std::uint64_t data_bytes) {
  std::uint64_t end = 0;
  std::string previous = "the header";
  for (const Entry& entry : entries) {
    const std::string where = tensor_place(file, entry.info.name);
    if (entry.begin < end) {
      throw InputError(fmt::format("{}: data begins at {}, inside {} that ends at {}", where,
                                   entry.begin, previous, end));
    }
    if (entry.begin > end) {
      throw InputError(fmt::format("{}: data begins at {}, {} bytes after the end of {}", where,
                                   entry.begin, entry.begin - end, previous));
    }
    if (entry.info.num_bytes > data_bytes - end) {
      throw InputError(fmt::format("{}: data ends at {}, the file holds {} bytes of data", where,
                                   end + entry.info.num_bytes, data_bytes));
    }
    end += entry.info.num_bytes;
    previous = fmt::format("tensor '{}'", entry.info.name);
  }
  if (end != data_bytes) {
    throw InputError(
        fmt::format("{}: {} bytes of data after the end of {}", file, data_bytes - end, previous));
  }
}

class SafetensorsFile : public TensorTable {
 public:
  explicit SafetensorsFile(const std::filesystem::path& path)
      : TensorTable(path.string()), mapping_(MappedFile::open(path)) {
    const std::span<const std::byte> bytes = mapping_->bytes();
    const std::string_view header = find_header(bytes);
    data_ = bytes.data() + kLengthBytes + header.size();
    std::vector<Entry> entries;
    const json parsed = parse_json(file() + ": header", header);
    for (const auto& [name, value] : parsed.items()) {
      if (name == kMetadataKey) {
        metadata_ = parse_metadata(file(), value);
      } else {
        entries.push_back(parse_entry(file(), name, value));
      }
    }
    // Empty tensors sort before the one that begins where they lie.
    std::stable_sort(entries.begin(), entries.end(), [](const Entry& a, const Entry& b) {
      return std::pair(a.begin, a.info.num_bytes) < std::pair(b.begin, b.info.num_bytes);
    });
    check_coverage(file(), entries, bytes.size() - kLengthBytes - header.size());
    for (Entry& entry : entries) {
      if (!entry.problem.empty()) {
        skip(entry.info.name, entry.problem);
        continue;
      }
      begins_.push_back(entry.begin);
      add(std::move(entry.info));
    }
  }

  HostTensor read(const std::string& name) const override {
    const std::size_t index = index_of(name);
    return {.info = tensors()[index],
            .file = file(),
            .data = std::shared_ptr<const std::byte>(mapping_, data_ + begins_[index])};
  }

 private:
  // The header's JSON text.
  std::string_view find_header(std::span<const std::byte> bytes) const {
    if (bytes.size() < kLengthBytes) {
      throw InputError(fmt::format("{}: file has {} bytes, a safetensors file has at least {}",
                                   file(), bytes.size(), kLengthBytes + 2));
    }
    std::uint64_t length = 0;
    std::memcpy(&length, bytes.data(), sizeof length);
    if (length > kMaxHeaderBytes) {
      throw InputError(
          fmt::format("{}: header length is {}, expected at most {}; is this a "
                      "safetensors file?",
                      file(), length, kMaxHeaderBytes));
    }
    if (length > bytes.size() - kLengthBytes) {
      throw InputError(
          fmt::format("{}: header length is {}, but only {} bytes follow: the file is "
                      "truncated",
                      file(), length, bytes.size() - kLengthBytes));
    }
    const std::string_view text(reinterpret_cast<const char*>(bytes.data()) + kLengthBytes, length);
    if (!text.starts_with('{')) {
      throw InputError(file() + ": header does not begin with '{': no safetensors file");
    }
    return text;
  }

  std::shared_ptr<const MappedFile> mapping_;
  const std::byte* data_ = nullptr;
  std::vector<std::uint64_t> begins_;  // in the order of tensors()
};

class ShardedSafetensors : public TensorTable {
 public:
  explicit ShardedSafetensors(const std::filesystem::path& index) : TensorTable(index.string()) {
    const auto mapping = MappedFile::open(index);
    const std::span<const std::byte> bytes = mapping->bytes();
    if (bytes.size() > kMaxHeaderBytes) {
      throw InputError(fmt::format("{}: file has {} bytes, expected an index of at most {}", file(),
                                   bytes.size(), kMaxHeaderBytes));
    }
    const json parsed = parse_json(
        file(), std::string_view(reinterpret_cast<const char*>(bytes.data()), bytes.size()));
    if (!parsed.is_object() || !parsed.contains("weight_map") ||
        !parsed["weight_map"].is_object()) {
      throw InputError(file() + ": expected an object with an object 'weight_map'");
    }
    for (const auto& [name, shard] : parsed["weight_map"].items()) {
      add_tensor(index.parent_path(), name, shard);
    }
  }

  HostTensor read(const std::string& name) const override {
    return shard_of_[index_of(name)]->read(name);
  }

 private:
  void add_tensor(const std::filesystem::path& folder, const std::string& name, const json& value) {
    const std::string where = fmt::format("{}: weight_map['{}']", file(), name);
    if (!value.is_string()) {
      throw InputError(fmt::format("{} is a {}, expected a file name", where, value.type_name()));
    }
    const auto shard_name = value.get<std::string>();
    auto& shard = shards_[shard_name];
    if (!shard) {
      // An index names its neighbours and nothing else on this machine.
      if (std::filesystem::path(shard_name).filename() != shard_name ||
          !shard_name.ends_with(".safetensors")) {
        throw InputError(
            fmt::format("{} is '{}', expected the name of a .safetensors file in the "
                        "same folder",
                        where, shard_name));
      }
      std::error_code ignored;
      if (!std::filesystem::exists(folder / shard_name, ignored)) {
        throw InputError(
            fmt::format("{}: shard '{}' is missing", file(), (folder / shard_name).string()));
      }
      shard = std::make_unique<SafetensorsFile>(folder / shard_name);
    }
    const TensorInfo* info = shard->find(name);
    const auto skipped = shard->skipped().find(name);
    if (skipped != shard->skipped().end()) {
      skip(name, skipped->second);
      return;
    }
    if (info == nullptr) {
      throw InputError(fmt::format("{}: tensor '{}' is missing, which {} places there",
                                   (folder / shard_name).string(), name, file()));
    }
    add(*info);
    shard_of_.push_back(shard.get());
  }

  std::map<std::string, std::unique_ptr<SafetensorsFile>> shards_;
  std::vector<const SafetensorsFile*> shard_of_;  // in the order of tensors()
};

// The JSON header of a file with these tensors, padded with blanks so that the data is aligned.
std::string header_text(const std::filesystem::path& path, const std::vector<HostTensor>& tensors,
                        const TensorMetadata& metadata) {
  nlohmann::ordered_json header = nlohmann::ordered_json::object();
  if (!metadata.empty()) header[kMetadataKey] = metadata;
  std::uint64_t offset = 0;
  for (const HostTensor& tensor : tensors) {
    const TensorInfo& info = tensor.info;
    header[info.name] = {{"dtype", dtype_name(info.dtype)},
                         {"shape", info.shape},
                         {"data_offsets", {offset, offset + info.num_bytes}}};
    offset += info.num_bytes;
  }
  std::string text;
  try {
    text = header.dump();
  } catch (const json::exception&) {
    throw UnsupportedError(path.string() + ": a tensor name or metadata text is not UTF-8");
  }
  text.append((kDataAlignment - (kLengthBytes + text.size()) % kDataAlignment) % kDataAlignment,
              ' ');
  return text;
}

class SafetensorsFormat : public Format {
 public:
  std::string name() const override { return "safetensors"; }
  std::vector<std::string> extensions() const override { return {".safetensors", kIndexExtension}; }
  std::string summary() const override {
    return "memory-mapped tensors; a sharded set opens through its .safetensors.index.json";
  }
  std::size_t max_tensors() const override { return std::numeric_limits<std::size_t>::max(); }

  std::unique_ptr<TensorFile> open(const std::filesystem::path& path) const override {
    if (path.extension() == ".json") return std::make_unique<ShardedSafetensors>(path);
    return std::make_unique<SafetensorsFile>(path);
  }

  void write(const std::filesystem::path& path, const std::vector<HostTensor>& tensors,
             const TensorMetadata& metadata) const override {
    check_writable(path, tensors);
    for (const HostTensor& tensor : tensors) {
      if (tensor.info.name == kMetadataKey) {
        throw UnsupportedError(
            fmt::format("{}: a tensor cannot be called '{}'", path.string(), kMetadataKey));
      }
    }
    const std::string header = header_text(path, tensors, metadata);
    const std::uint64_t length = header.size();
    AtomicFile file(path);
    require_disk_space(path, total_bytes(tensors));
    file.write(&length, sizeof length);
    file.write(header);
    for (const HostTensor& tensor : tensors) file.write(tensor.data.get(), tensor.info.num_bytes);
    file.commit();
  }
};

}  // namespace

const Format& format_safetensors() {
  static const SafetensorsFormat format;
  return format;
}

}  // namespace s2o
