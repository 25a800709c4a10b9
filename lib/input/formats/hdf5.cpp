// HDF5: every dataset of the file, at any depth, under its path without the leading slash.
// bfloat16, which HDF5 does not have, is stored as uint16 with the string attribute
// dtype = "bfloat16". Metadata are string attributes of the root group.
//
// A file may not make us open other files: soft and external links are not followed, external
// storage and virtual datasets are refused.
#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <limits>
#include <map>
#include <optional>
#include <stdexcept>
#include <utility>

#include "lib/core/atomic_file.h"
#include "lib/core/error.h"
#include "lib/core/hdf5_handle.h"
#include "lib/core/isolated.h"
#include "lib/core/memory.h"
#include "lib/core/regular_file.h"
#include "lib/input/formats/hdf5_listing.h"
#include "lib/input/formats/tensor_table.h"

namespace s2o {
namespace {

constexpr const char* kDTypeAttribute = "dtype";
constexpr std::string_view kBFloat16 = "bfloat16";
constexpr std::size_t kMaxTextBytes = 1 << 20;  // of one attribute
// The library can loop for ever in a damaged file. Sound ones are listed within milliseconds and
// read ten times as fast as this, in processor time.
constexpr std::uint64_t kBaseSeconds = 5;
constexpr std::uint64_t kMinBytesPerSecond = 10'000'000;

[[noreturn]] void throw_input(const std::string& where, const char* doing) {
  throw InputError(fmt::format("{}: {} failed: {}", where, doing, hdf5_error_text()));
}

Hdf5Handle checked(hid_t id, const std::string& where, const char* doing) {
  if (id < 0) throw_input(where, doing);
  return Hdf5Handle(id);
}

// IEEE half precision: HDF5 1.10 has no name for it, h5py describes it the same way.
Hdf5Handle half_type() {
  Hdf5Handle type(H5Tcopy(H5T_IEEE_F32LE));
  H5Tset_fields(type.get(), 15, 10, 5, 0, 10);
  H5Tset_size(type.get(), 2);
  H5Tset_ebias(type.get(), 15);
  return type;
}

// numpy's bool, as h5py stores it.
Hdf5Handle bool_type() {
  Hdf5Handle type(H5Tenum_create(H5T_STD_I8LE));
  std::int8_t value = 0;
  for (const char* name : {"FALSE", "TRUE"}) {
    H5Tenum_insert(type.get(), name, &value);
    ++value;
  }
  return type;
}

// As it stands in memory; HDF5 converts from the byte order of the file.
Hdf5Handle memory_type(DType dtype) {
  switch (dtype) {
    case DType::kF64:
      return Hdf5Handle(H5Tcopy(H5T_IEEE_F64LE));
    case DType::kF32:
      return Hdf5Handle(H5Tcopy(H5T_IEEE_F32LE));
    case DType::kF16:
      return half_type();
    case DType::kI64:
      return Hdf5Handle(H5Tcopy(H5T_STD_I64LE));
    case DType::kI32:
      return Hdf5Handle(H5Tcopy(H5T_STD_I32LE));
    case DType::kU32:
      return Hdf5Handle(H5Tcopy(H5T_STD_U32LE));
    case DType::kI16:
      return Hdf5Handle(H5Tcopy(H5T_STD_I16LE));
    case DType::kBF16:
    case DType::kU16:
      return Hdf5Handle(H5Tcopy(H5T_STD_U16LE));
    case DType::kBool:
      return bool_type();
    case DType::kU8:
      return Hdf5Handle(H5Tcopy(H5T_STD_U8LE));
    case DType::kI8:
      return Hdf5Handle(H5Tcopy(H5T_STD_I8LE));
  }
  throw std::logic_error("unknown DType");
}

// The number type of a dataset, or nothing when no DType is the same (but for byte order).
std::optional<DType> dtype_of(hid_t type) {
  const H5T_class_t kind = H5Tget_class(type);
  const std::size_t size = H5Tget_size(type);
  if (kind == H5T_INTEGER) {
    const bool is_signed = H5Tget_sign(type) == H5T_SGN_2;
    switch (size) {
      case 1:
        return is_signed ? DType::kI8 : DType::kU8;
      case 2:
        return is_signed ? DType::kI16 : DType::kU16;
      case 4:
        return is_signed ? DType::kI32 : DType::kU32;
      case 8:
        return is_signed ? std::optional(DType::kI64) : std::nullopt;
      default:
        return std::nullopt;
    }
  }
  if (kind == H5T_ENUM && H5Tequal(type, bool_type().get()) > 0) return DType::kBool;
  if (kind == H5T_FLOAT) {
    for (const DType dtype : {DType::kF64, DType::kF32, DType::kF16}) {
      const Hdf5Handle known = memory_type(dtype);
      for (const H5T_order_t order : {H5T_ORDER_LE, H5T_ORDER_BE}) {
        H5Tset_order(known.get(), order);
        if (H5Tequal(type, known.get()) > 0) return dtype;
      }
    }
  }
  return std::nullopt;
}

// A string attribute, of fixed or variable length; nothing when it is absent or no string.
std::optional<std::string> read_text(hid_t object, const char* name) {
  if (H5Aexists(object, name) <= 0) return std::nullopt;
  const Hdf5Handle attribute(H5Aopen(object, name, H5P_DEFAULT));
  const Hdf5Handle type(H5Aget_type(attribute.get()));
  const Hdf5Handle space(H5Aget_space(attribute.get()));
  if (H5Tget_class(type.get()) != H5T_STRING || H5Sget_simple_extent_npoints(space.get()) != 1) {
    return std::nullopt;
  }
  if (H5Tis_variable_str(type.get()) > 0) {
    char* text = nullptr;
    if (H5Aread(attribute.get(), type.get(), &text) < 0 || text == nullptr) return std::nullopt;
    std::string value(text);
    H5free_memory(text);
    return value;
  }
  const std::size_t size = H5Tget_size(type.get());
  if (size > kMaxTextBytes) return std::nullopt;
  std::string value(size, '\0');
  if (H5Aread(attribute.get(), type.get(), value.data()) < 0) return std::nullopt;
  return value.substr(0, value.find('\0'));
}

// Extents of a dataset; nothing when it holds no array at all (a null dataspace).
std::optional<std::vector<std::int64_t>> shape_of(hid_t dataset, const std::string& where) {
  const Hdf5Handle space = checked(H5Dget_space(dataset), where, "reading the shape");
  if (H5Sget_simple_extent_type(space.get()) == H5S_NULL) return std::nullopt;
  const int rank = H5Sget_simple_extent_ndims(space.get());
  if (rank < 0) throw_input(where, "reading the shape");
  std::array<hsize_t, H5S_MAX_RANK> extents{};
  if (rank > H5S_MAX_RANK || H5Sget_simple_extent_dims(space.get(), extents.data(), nullptr) < 0) {
    throw_input(where, "reading the shape");
  }
  std::vector<std::int64_t> shape;
  for (int axis = 0; axis < rank; ++axis) {
    if (!std::in_range<std::int64_t>(extents[axis])) {
      throw InputError(fmt::format("{}: extent {} of dimension {} overflows 63 bits", where,
                                   extents[axis], axis));
    }
    shape.push_back(static_cast<std::int64_t>(extents[axis]));
  }
  return shape;
}

// InputError for a filter that this library has neither built in nor as a plugin. A writer that did
// not have it either, where it is optional, has stored the chunks as they are and noted that.
void require_filters(hid_t dataset, hid_t layout, const std::string& where) {
  const int count = H5Pget_nfilters(layout);
  if (count <= 0) return;
  const Hdf5Handle space = checked(H5Dget_space(dataset), where, "reading the shape");
  unsigned unused = 0;  // bit i: filter i was not applied
  if (H5Dget_chunk_info(dataset, space.get(), 0, nullptr, &unused, nullptr, nullptr) < 0) {
    throw_input(where, "reading the first chunk");
  }
  for (int i = 0; i < count; ++i) {
    unsigned flags = 0;
    std::size_t num_values = 0;
    std::array<char, 64> name{};
    const H5Z_filter_t filter =
        H5Pget_filter2(layout, static_cast<unsigned>(i), &flags, &num_values, nullptr, name.size(),
                       name.data(), nullptr);
    if (filter < 0) throw_input(where, "reading the filters");
    if (H5Zfilter_avail(filter) > 0 || (unused >> i & 1u) != 0) continue;
    name.back() = '\0';
    throw InputError(fmt::format(
        "{}: packed by the HDF5 filter '{}' (number {}), which is not here; set HDF5_PLUGIN_PATH "
        "to "
        "a folder with its plugin, or write the dataset with gzip or without compression",
        where, name[0] != '\0' ? name.data() : "unnamed", static_cast<int>(filter)));
  }
}

// A dataset may claim any shape without holding a byte: what was never written reads as zeros.
// That is never what a dump means, so every byte or chunk has to be there.
void require_written(hid_t dataset, const std::string& where, const TensorInfo& info) {
  const Hdf5Handle layout = checked(H5Dget_create_plist(dataset), where, "reading the layout");
  const H5D_layout_t kind = H5Pget_layout(layout.get());
  if (kind == H5D_VIRTUAL || H5Pget_external_count(layout.get()) > 0) {
    throw InputError(where + ": data lies in other files, expected it in this one");
  }
  if (info.num_bytes == 0) return;
  if (kind != H5D_CHUNKED) {
    const hsize_t stored = H5Dget_storage_size(dataset);
    if (stored < info.num_bytes) {
      throw InputError(fmt::format("{}: {} bytes are stored, expected {} for {} of shape {}", where,
                                   stored, info.num_bytes, dtype_name(info.dtype),
                                   shape_text(info.shape)));
    }
    return;
  }
  std::array<hsize_t, H5S_MAX_RANK> chunk{};
  const int rank = H5Pget_chunk(layout.get(), H5S_MAX_RANK, chunk.data());
  if (rank != static_cast<int>(info.shape.size())) throw_input(where, "reading the chunk shape");
  hsize_t expected = 1;  // at most the number of elements, which fits
  hsize_t chunk_bytes = dtype_bytes(info.dtype);
  for (int axis = 0; axis < rank; ++axis) {
    if (chunk[axis] == 0 || __builtin_mul_overflow(chunk_bytes, chunk[axis], &chunk_bytes)) {
      throw InputError(fmt::format("{}: extent {} of a chunk is not possible", where, chunk[axis]));
    }
    expected *= (static_cast<hsize_t>(info.shape[axis]) - 1) / chunk[axis] + 1;
  }
  const Hdf5Handle space = checked(H5Dget_space(dataset), where, "reading the shape");
  hsize_t written = 0;
  if (H5Dget_num_chunks(dataset, space.get(), &written) < 0) throw_input(where, "counting chunks");
  if (written < expected) {
    throw InputError(fmt::format("{}: {} of {} chunks are written: the dataset is incomplete",
                                 where, written, expected));
  }
  require_filters(dataset, layout.get(), where);
  require_memory(chunk_bytes, where + ": one chunk");  // HDF5 allocates a whole one
}

Hdf5Handle open_file(const std::string& file) {
  return checked(H5Fopen(file.c_str(), H5F_ACC_RDONLY, hdf5_file_access().get()), file,
                 "opening as HDF5");
}

// Names of all datasets, in the order of their names. An object with several names has one here.
std::vector<std::string> dataset_names(hid_t file, const std::string& where) {
  std::vector<std::string> names;
  const auto visit = [](hid_t, const char* name, const H5O_info_t* info, void* out) -> herr_t {
    if (info->type != H5O_TYPE_DATASET) return 0;
    try {
      static_cast<std::vector<std::string>*>(out)->emplace_back(name);
    } catch (...) {
      return -1;  // no exception may cross the C library
    }
    return 0;
  };
  if (H5Ovisit2(file, H5_INDEX_NAME, H5_ITER_INC, visit, &names, H5O_INFO_BASIC) < 0) {
    throw_input(where, "listing the datasets");
  }
  return names;
}

TensorMetadata read_metadata(hid_t file) {
  TensorMetadata metadata;
  const Hdf5Handle root(H5Gopen2(file, "/", H5P_DEFAULT));
  H5O_info_t info{};
  if (!root || H5Oget_info2(root.get(), &info, H5O_INFO_NUM_ATTRS) < 0) return metadata;
  for (hsize_t i = 0; i < info.num_attrs; ++i) {
    std::array<char, 256> name{};
    if (H5Aget_name_by_idx(root.get(), ".", H5_INDEX_NAME, H5_ITER_INC, i, name.data(), name.size(),
                           H5P_DEFAULT) < 0) {
      break;
    }
    if (auto text = read_text(root.get(), name.data())) metadata[name.data()] = *std::move(text);
  }
  return metadata;
}

// Adds the dataset to the tensors, or to those that are no arrays of numbers.
void inspect(hid_t file, const std::string& file_name, const std::string& name,
             Hdf5Listing& listing) {
  const std::string where = tensor_place(file_name, name);
  const Hdf5Handle dataset = checked(H5Dopen2(file, name.c_str(), H5P_DEFAULT), where, "opening");
  const Hdf5Handle type = checked(H5Dget_type(dataset.get()), where, "reading the type");
  auto shape = shape_of(dataset.get(), where);
  std::optional<DType> dtype = dtype_of(type.get());
  if (!dtype || !shape) {
    listing.skipped[name] = where + ": is of another HDF5 type, expected an array of numbers";
    return;
  }
  if (dtype == DType::kU16 && read_text(dataset.get(), kDTypeAttribute) == kBFloat16) {
    dtype = DType::kBF16;
  }
  TensorInfo info{.name = name, .dtype = *dtype, .shape = *std::move(shape)};
  info.num_bytes = checked_tensor_bytes(where, info.shape, info.dtype);
  try {
    require_written(dataset.get(), where, info);
    listing.tensors.push_back(std::move(info));
  } catch (const InputError& error) {
    listing.skipped[name] = error.what();
  }
}

std::string list_file(const std::string& file_name) {
  const Hdf5QuietErrors quiet;
  const Hdf5Handle file = open_file(file_name);
  Hdf5Listing listing;
  listing.metadata = read_metadata(file.get());
  for (const std::string& name : dataset_names(file.get(), file_name)) {
    inspect(file.get(), file_name, name, listing);
  }
  return listing_text(listing);
}

// Reads the dataset that `info` describes to `out`.
void read_dataset(const std::string& file_name, const TensorInfo& info, std::byte* out) {
  const std::string where = tensor_place(file_name, info.name);
  const Hdf5QuietErrors quiet;
  const Hdf5Handle file = open_file(file_name);
  const Hdf5Handle dataset =
      checked(H5Dopen2(file.get(), info.name.c_str(), H5P_DEFAULT), where, "opening");
  // `out` has the size that was listed, when the file was opened first.
  if (shape_of(dataset.get(), where) != info.shape) {
    throw InputError(where + ": shape has changed while the file was in use");
  }
  require_written(dataset.get(), where, info);
  if (H5Dread(dataset.get(), memory_type(info.dtype).get(), H5S_ALL, H5S_ALL, H5P_DEFAULT, out) <
      0) {
    throw_input(where, "reading");
  }
}

// The library follows the lengths and offsets of a damaged file without much care, and crashes:
// every read happens in a process of its own, which fills shared memory.
class Hdf5File : public TensorTable {
 public:
  explicit Hdf5File(const std::filesystem::path& path) : TensorTable(path.string()) {
    const std::uint64_t max_seconds =
        kBaseSeconds + require_regular_file(path) / kMinBytesPerSecond;
    const std::string text =
        run_isolated(file(), max_seconds, [this] { return list_file(file()); });
    Hdf5Listing listing = parse_listing(file(), text);
    metadata_ = std::move(listing.metadata);
    for (const auto& [name, reason] : listing.skipped) skip(name, reason);
    for (TensorInfo& info : listing.tensors) add(std::move(info));
  }

  HostTensor read(const std::string& name) const override {
    const TensorInfo& info = tensors()[index_of(name)];
    const std::string where = tensor_place(file(), name);
    require_memory(info.num_bytes, where);
    const std::shared_ptr<std::byte> data = allocate_shared(where, info.num_bytes);
    const std::uint64_t max_seconds = kBaseSeconds + info.num_bytes / kMinBytesPerSecond;
    run_isolated(where, max_seconds, [&] {
      read_dataset(file(), info, data.get());
      return std::string();
    });
    return {.info = info, .file = file(), .data = data};
  }
};

[[noreturn]] void throw_output(const std::string& where) {
  throw UnsupportedError(fmt::format("{}: writing failed: {}", where, hdf5_error_text()));
}

void write_text(hid_t object, const std::string& name, const std::string& text,
                const std::string& where) {
  const Hdf5Handle type(H5Tcopy(H5T_C_S1));
  H5Tset_size(type.get(), text.size() + 1);
  H5Tset_cset(type.get(), H5T_CSET_UTF8);
  const Hdf5Handle space(H5Screate(H5S_SCALAR));
  const Hdf5Handle attribute(
      H5Acreate2(object, name.c_str(), type.get(), space.get(), H5P_DEFAULT, H5P_DEFAULT));
  if (!attribute || H5Awrite(attribute.get(), type.get(), text.c_str()) < 0) throw_output(where);
}

void write_dataset(hid_t file, const HostTensor& tensor, const std::string& where) {
  const TensorInfo& info = tensor.info;
  const std::vector<hsize_t> extents(info.shape.begin(), info.shape.end());
  const Hdf5Handle space(
      H5Screate_simple(static_cast<int>(extents.size()), extents.data(), nullptr));
  const Hdf5Handle links(H5Pcreate(H5P_LINK_CREATE));
  H5Pset_create_intermediate_group(links.get(), 1);  // "layer/0/q" makes its groups
  const Hdf5Handle properties(H5Pcreate(H5P_DATASET_CREATE));
  H5Pset_obj_track_times(properties.get(), false);  // equal tensors give equal bytes
  const Hdf5Handle type = memory_type(info.dtype);
  Hdf5Handle dataset(H5Dcreate2(file, info.name.c_str(), type.get(), space.get(), links.get(),
                                properties.get(), H5P_DEFAULT));
  if (!dataset) throw_output(where);
  if (info.num_bytes > 0 &&
      H5Dwrite(dataset.get(), type.get(), H5S_ALL, H5S_ALL, H5P_DEFAULT, tensor.data.get()) < 0) {
    throw_output(where);
  }
  if (info.dtype == DType::kBF16) {
    write_text(dataset.get(), kDTypeAttribute, std::string(kBFloat16), where);
  }
  if (!dataset.reset()) throw_output(where);
}

class Hdf5Format : public Format {
 public:
  std::string name() const override { return "hdf5"; }
  std::vector<std::string> extensions() const override { return {".h5", ".hdf5"}; }
  std::string summary() const override {
    return "all datasets under their paths; bfloat16 as uint16 with attribute dtype = \"bfloat16\"";
  }
  std::size_t max_tensors() const override { return std::numeric_limits<std::size_t>::max(); }

  std::unique_ptr<TensorFile> open(const std::filesystem::path& path) const override {
    return std::make_unique<Hdf5File>(path);
  }

  void write(const std::filesystem::path& path, const std::vector<HostTensor>& tensors,
             const TensorMetadata& metadata) const override {
    check_writable(path, tensors);
    AtomicFile output(path);
    // HDF5 does not recover well from a full disk: notice before.
    require_disk_space(path, total_bytes(tensors));
    const Hdf5QuietErrors quiet;
    Hdf5Handle file(H5Fcreate(output.temporary_path().c_str(), H5F_ACC_TRUNC, H5P_DEFAULT,
                              hdf5_file_access().get()));
    if (!file) throw_output(path.string());
    for (const auto& [key, text] : metadata) write_text(file.get(), key, text, path.string());
    for (const HostTensor& tensor : tensors) {
      write_dataset(file.get(), tensor, tensor_place(path.string(), tensor.info.name));
    }
    if (H5Fflush(file.get(), H5F_SCOPE_GLOBAL) < 0 || !file.reset()) throw_output(path.string());
    output.commit();
  }
};

}  // namespace

const Format& format_hdf5() {
  static const Hdf5Format format;
  return format;
}

}  // namespace s2o
