// Q, K, V from tensors that somebody dumped: one layer per file, or a file of `s2o capture`.
#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <limits>
#include <memory>
#include <optional>
#include <utility>

#include "kernels/common/parallel.h"
#include "lib/config/json_reader.h"
#include "lib/core/error.h"
#include "lib/core/log.h"
#include "lib/core/memory.h"
#include "lib/core/text.h"
#include "lib/input/capture_file.h"
#include "lib/input/formats/format.h"
#include "lib/sources/source.h"

namespace s2o {
namespace {

constexpr std::string_view kLayerPlace = "{layer}";
constexpr std::int64_t kMaxInt = std::numeric_limits<int>::max();
constexpr std::int64_t kTokensPerBlock = 1024;  // converted by one thread at a time

enum class Layout { kHeadMajor, kTokenMajor };

struct HeadShape {
  std::int64_t heads = 0;
  std::int64_t seqlen = 0;
  std::int64_t head_dim = 0;
  bool operator==(const HeadShape&) const = default;
};

struct DumpTensor {
  TensorInfo info;
  HeadShape shape;
};

struct DumpLayer {
  std::shared_ptr<const TensorFile> file;
  std::string file_name;  // for messages
  Layout layout = Layout::kHeadMajor;
  int layer = 0;
  DumpTensor q, k, v;
};

// The "tensors" key; the names may hold "{layer}".
struct TensorNames {
  std::string q = "q";
  std::string k = "k";
  std::string v = "v";

  static bool is_of_layer(const std::string& name) {
    return name.find(kLayerPlace) != std::string::npos;
  }
  bool has_layer() const { return std::ranges::all_of(std::array{q, k, v}, is_of_layer); }
  bool mentions_layer() const { return std::ranges::any_of(std::array{q, k, v}, is_of_layer); }
  TensorNames of_layer(int layer) const {
    const auto fill = [layer](std::string name) {
      const std::size_t at = name.find(kLayerPlace);
      return name.replace(at, kLayerPlace.size(), std::to_string(layer));
    };
    return {fill(q), fill(k), fill(v)};
  }
};

std::string place_of(const DumpLayer& layer, const DumpTensor& tensor) {
  return fmt::format("{}: tensor '{}'", layer.file_name, tensor.info.name);
}

HeadShape interpret(const std::vector<std::int64_t>& shape, Layout layout) {
  const std::size_t first = shape.size() - 3;
  return layout == Layout::kHeadMajor ? HeadShape{shape[first], shape[first + 1], shape[first + 2]}
                                      : HeadShape{shape[first + 1], shape[first], shape[first + 2]};
}

DumpTensor find_tensor(const DumpLayer& layer, const std::string& name) {
  const auto& infos = layer.file->tensors();
  const auto found = std::ranges::find(infos, name, &TensorInfo::name);
  if (found == infos.end()) {
    layer.file->read(name);  // says why there is none
    throw InputError(fmt::format("{}: tensor '{}' is not listed", layer.file_name, name));
  }
  DumpTensor tensor{.info = *found, .shape = {}};
  const std::string where = place_of(layer, tensor);
  const DType dtype = tensor.info.dtype;
  if (dtype != DType::kF64 && dtype != DType::kF32 && dtype != DType::kF16 &&
      dtype != DType::kBF16) {
    throw InputError(
        fmt::format("{}: dtype is {}, expected F64, F32, F16 or BF16", where, dtype_name(dtype)));
  }
  const auto& shape = tensor.info.shape;
  const char* order =
      layer.layout == Layout::kHeadMajor ? "heads, seqlen, head_dim" : "seqlen, heads, head_dim";
  if (shape.size() != 3 && shape.size() != 4) {
    throw InputError(fmt::format("{}: shape is {}, expected [{}] or [1, {}]", where,
                                 shape_text(shape), order, order));
  }
  if (shape.size() == 4 && shape[0] != 1) {
    throw InputError(fmt::format("{}: batch is {}, expected 1 (shape {} as [batch, {}])", where,
                                 shape[0], shape_text(shape), order));
  }
  tensor.shape = interpret(shape, layer.layout);
  if (tensor.shape.heads < 1 || tensor.shape.seqlen < 1 || tensor.shape.head_dim < 1 ||
      tensor.shape.heads > kMaxInt || tensor.shape.head_dim > kMaxInt) {
    throw InputError(fmt::format(
        "{}: {} heads, seqlen {}, head_dim {} (shape {}), expected all "
        ">= 1 and below 2^31",
        where, tensor.shape.heads, tensor.shape.seqlen, tensor.shape.head_dim, shape_text(shape)));
  }
  return tensor;
}

bool shapes_agree(const HeadShape& q, const HeadShape& k, const HeadShape& v) {
  return k == v && q.seqlen == k.seqlen && q.head_dim == k.head_dim && q.heads % k.heads == 0;
}

// Why the shapes may not agree: what is called heads is tokens.
std::string layout_hint(const DumpLayer& layer) {
  const bool is_head_major = layer.layout == Layout::kHeadMajor;
  const Layout other = is_head_major ? Layout::kTokenMajor : Layout::kHeadMajor;
  if (!shapes_agree(interpret(layer.q.info.shape, other), interpret(layer.k.info.shape, other),
                    interpret(layer.v.info.shape, other))) {
    return "";
  }
  return fmt::format("; the shapes agree with \"layout\": \"{}\"",
                     is_head_major ? "token_major" : "head_major");
}

void require_equal(const DumpLayer& layer, const DumpTensor& tensor, const DumpTensor& reference,
                   const char* what, std::int64_t HeadShape::*extent) {
  if (tensor.shape.*extent == reference.shape.*extent) return;
  throw InputError(fmt::format("{}: {} is {}, expected {} (from '{}' {}){}",
                               place_of(layer, tensor), what, tensor.shape.*extent,
                               reference.shape.*extent, reference.info.name,
                               shape_text(reference.info.shape), layout_hint(layer)));
}

void check_shapes(const DumpLayer& layer) {
  require_equal(layer, layer.k, layer.q, "head_dim", &HeadShape::head_dim);
  require_equal(layer, layer.k, layer.q, "seqlen", &HeadShape::seqlen);
  require_equal(layer, layer.v, layer.k, "head_dim", &HeadShape::head_dim);
  require_equal(layer, layer.v, layer.k, "seqlen", &HeadShape::seqlen);
  require_equal(layer, layer.v, layer.k, "number of heads", &HeadShape::heads);
  if (layer.q.shape.heads % layer.k.shape.heads != 0) {
    throw InputError(
        fmt::format("{}: number of heads is {}, expected a divisor of {} (from '{}' "
                    "{}){}",
                    place_of(layer, layer.k), layer.k.shape.heads, layer.q.shape.heads,
                    layer.q.info.name, shape_text(layer.q.info.shape), layout_hint(layer)));
  }
}

// [seqlen, heads, head_dim] to [heads, seqlen, head_dim]
void copy_token_major(const HostTensor& tensor, const HeadShape& shape, float* out) {
  const std::int64_t token_size = shape.heads * shape.head_dim;
  parallel_for((shape.seqlen - 1) / kTokensPerBlock + 1, [&](std::int64_t block) {
    std::vector<float> token(static_cast<std::size_t>(token_size));
    const std::int64_t end = std::min(shape.seqlen, (block + 1) * kTokensPerBlock);
    for (std::int64_t t = block * kTokensPerBlock; t < end; ++t) {
      tensor.copy_float(t * token_size, token_size, token.data());
      for (std::int64_t head = 0; head < shape.heads; ++head) {
        std::copy_n(token.data() + head * shape.head_dim, shape.head_dim,
                    out + (head * shape.seqlen + t) * shape.head_dim);
      }
    }
  });
}

bool loses_bits(DType from, StorageDType to) {
  switch (to) {
    case StorageDType::kF32:
      return from == DType::kF64;
    case StorageDType::kBF16:
      return from != DType::kBF16;
    case StorageDType::kF16:
      return from != DType::kF16;
  }
  return true;
}

std::vector<float> load_tensor(const DumpLayer& layer, const DumpTensor& tensor,
                               StorageDType dtype) {
  const HostTensor stored = layer.file->read(tensor.info.name);
  const std::int64_t count = stored.num_elements();
  std::vector<float> values(static_cast<std::size_t>(count));
  if (layer.layout == Layout::kTokenMajor) {
    copy_token_major(stored, tensor.shape, values.data());
  } else {
    stored.copy_float(0, count, values.data());
  }
  if (loses_bits(tensor.info.dtype, dtype)) {
    const std::string rounding =
        fmt::format("{}: {} values are rounded to {}", place_of(layer, tensor),
                    dtype_name(tensor.info.dtype), storage_dtype_name(dtype));
    // The usual dumps are fp32; who stores fp64 may expect it to be used.
    log_message(tensor.info.dtype == DType::kF64 ? LogLevel::kWarning : LogLevel::kInfo, rounding);
    round_to_dtype(values, dtype, place_of(layer, tensor));
  }
  return values;
}

AttentionInput load_layer(const DumpLayer& layer, const std::string& name,
                          const SourceOptions& options) {
  std::uint64_t num_values = 0;
  for (const DumpTensor* tensor : {&layer.q, &layer.k, &layer.v}) {
    num_values += tensor->info.num_bytes / dtype_bytes(tensor->info.dtype);
  }
  require_memory(num_values * sizeof(float), layer.file_name + ": Q, K and V in fp32");
  AttentionInput input;
  input.name = name;
  input.layer = layer.layer;
  input.dtype = options.dtype;
  input.problem.seqlen = layer.q.shape.seqlen;
  input.problem.num_q_heads = static_cast<int>(layer.q.shape.heads);
  input.problem.num_kv_heads = static_cast<int>(layer.k.shape.heads);
  input.problem.head_dim = static_cast<int>(layer.q.shape.head_dim);
  input.q = load_tensor(layer, layer.q, options.dtype);
  input.k = load_tensor(layer, layer.k, options.dtype);
  input.v = load_tensor(layer, layer.v, options.dtype);
  validate_attention_input(input, options.allow_nonfinite);
  return input;
}

// "dir/layer0.safetensors" is "layer0", so is "dir/layer0/".
std::string stem_of(const std::filesystem::path& path) {
  const std::filesystem::path file = path.has_filename() ? path : path.parent_path();
  std::string stem = file.stem().string();
  for (const std::string_view inner : {".index", ".safetensors"}) {
    if (stem.ends_with(inner)) stem.resize(stem.size() - inner.size());
  }
  return stem;
}

// One name per path, by its stem.
std::vector<std::string> input_names(const JsonReader& reader,
                                     const std::vector<std::string>& paths) {
  const std::string prefix = reader.get_string("name", "dump");
  if (paths.size() == 1 && reader.has("name")) return {prefix};
  std::vector<std::string> names;
  for (const std::string& path : paths) names.push_back(prefix + "/" + stem_of(path));
  return names;
}

TensorNames read_names(const JsonReader& reader) {
  TensorNames names;
  if (!reader.has("tensors")) return names;
  const JsonReader tensors(reader.at("tensors"), reader.path_of("tensors"), {"q", "k", "v"});
  return {tensors.get_string("q", names.q), tensors.get_string("k", names.k),
          tensors.get_string("v", names.v)};
}

InputIdentity identity_of(const JsonReader& reader, const std::string& path,
                          const std::filesystem::path& full_path, const SourceOptions& options) {
  const TensorNames names = read_names(reader);
  InputIdentity identity;
  identity.origin["path"] = path;
  identity.facts["source"] = "dump";
  add_file_identity(identity, "", file_identity(full_path));
  identity.facts["layout"] = reader.get_string("layout", "head_major");
  identity.facts["q"] = names.q;
  identity.facts["k"] = names.k;
  identity.facts["v"] = names.v;
  identity.facts["dtype"] = storage_dtype_name(options.dtype);
  return identity;
}

// Which layers of a file are cells, and how their tensors are called there.
std::vector<std::pair<std::optional<int>, TensorNames>> choose_layers(
    const JsonReader& reader, const TensorFile& file, const std::string& file_name) {
  const std::vector<std::int64_t> chosen = reader.get_ints("layers", false, 0, kMaxInt);
  TensorNames names = read_names(reader);
  const std::vector<int> captured = captured_layers(file);
  std::vector<std::pair<std::optional<int>, TensorNames>> layers;
  if (!reader.has("tensors") && !captured.empty()) {
    for (const int layer : captured) {
      if (!chosen.empty() && std::ranges::find(chosen, layer) == chosen.end()) continue;
      layers.push_back({layer,
                        {capture_tensor_name(layer, "q"), capture_tensor_name(layer, "k"),
                         capture_tensor_name(layer, "v")}});
    }
    for (const std::int64_t layer : chosen) {
      if (std::ranges::find(captured, layer) != captured.end()) continue;
      throw ConfigError(fmt::format("{}: found {}, but '{}' holds layers {}",
                                    reader.path_of("layers"), layer, file_name,
                                    fmt::join(captured, ", ")));
    }
    return layers;
  }
  if (chosen.empty() && names.mentions_layer()) {
    throw ConfigError(
        fmt::format("{}: the names hold \"{}\", expected \"layers\" beside them: the "
                    "numbers to put there",
                    reader.path_of("tensors"), kLayerPlace));
  }
  if (chosen.empty()) return {{std::nullopt, names}};
  if (!names.has_layer()) {
    throw ConfigError(
        fmt::format("{}: '{}' is no file of captured layers (with tensors named "
                    "\"{}\"), expected \"tensors\" with \"{}\" in each name",
                    reader.path_of("layers"), file_name, capture_tensor_name(0, "q"), kLayerPlace));
  }
  for (const std::int64_t layer : chosen) {
    layers.emplace_back(static_cast<int>(layer), names.of_layer(static_cast<int>(layer)));
  }
  return layers;
}

}  // namespace

std::vector<InputCell> expand_dump_source(const nlohmann::ordered_json& entry,
                                          const std::string& path, const SourceOptions& options) {
  const JsonReader reader(entry, path, {"source", "name", "path", "tensors", "layout", "layers"});
  const std::vector<std::string> files = reader.get_strings("path", true);
  const std::vector<std::string> names = input_names(reader, files);
  const Layout layout =
      reader.get_choice("layout", {"head_major", "token_major"}, "head_major") == "head_major"
          ? Layout::kHeadMajor
          : Layout::kTokenMajor;
  std::vector<InputCell> cells;
  for (std::size_t i = 0; i < files.size(); ++i) {
    const std::filesystem::path full_path = options.base_folder / files[i];
    const std::shared_ptr<const TensorFile> file = open_tensor_file(full_path);
    const InputIdentity identity = identity_of(reader, files[i], full_path, options);
    for (const auto& [named, tensors] : choose_layers(reader, *file, files[i])) {
      const int number = named.value_or(0);
      DumpLayer layer{.file = file,
                      .file_name = full_path.string(),
                      .layout = layout,
                      .layer = number,
                      .q = {},
                      .k = {},
                      .v = {}};
      layer.q = find_tensor(layer, tensors.q);
      layer.k = find_tensor(layer, tensors.k);
      layer.v = find_tensor(layer, tensors.v);
      check_shapes(layer);
      cells.push_back({.name = names[i],
                       .layer = number,
                       .seqlen = layer.q.shape.seqlen,
                       .names_layer = named.has_value(),
                       .identity = identity,
                       .load = [layer = std::move(layer), name = names[i], options] {
                         return load_layer(layer, name, options);
                       }});
    }
  }
  return cells;
}

}  // namespace s2o
