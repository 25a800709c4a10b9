// numpy's array file: a header (npy_header.h) and the elements. Source: numpy.lib.format.
#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "lib/core/atomic_file.h"
#include "lib/core/error.h"
#include "lib/core/mapped_file.h"
#include "lib/input/formats/npy_header.h"
#include "lib/input/formats/tensor_table.h"

namespace s2o {
namespace {

// One file (`where` is the file) or all .npy files of a folder.
class NpyFiles : public TensorTable {
 public:
  NpyFiles(const std::filesystem::path& where, const std::vector<std::filesystem::path>& files)
      : TensorTable(where.string()) {
    for (const std::filesystem::path& file : files) {
      Array array{.file = file.string(), .mapping = MappedFile::open(file), .header = {}};
      const auto bytes = array.mapping->bytes();
      array.header = parse_npy_header(
          array.file, bytes.first(std::min(bytes.size(), kMaxNpyHeaderBytes)), bytes.size());
      add({.name = file.stem().string(),
           .dtype = array.header.dtype,
           .shape = array.header.shape,
           .num_bytes = array.header.num_bytes});
      arrays_.push_back(std::move(array));
    }
  }

  HostTensor read(const std::string& name) const override {
    const std::size_t index = index_of(name);
    const Array& array = arrays_[index];
    std::shared_ptr<const std::byte> data(array.mapping,
                                          array.mapping->bytes().data() + array.header.data_offset);
    return {.info = tensors()[index],
            .file = array.file,
            .data = npy_data_in_c_order(array.file, array.header, std::move(data))};
  }

 private:
  struct Array {
    std::string file;
    std::shared_ptr<const MappedFile> mapping;
    NpyHeader header;
  };
  std::vector<Array> arrays_;  // in the order of tensors()
};

class NpyFormat : public Format {
 public:
  std::string name() const override { return "npy"; }
  std::vector<std::string> extensions() const override { return {".npy"}; }
  std::string summary() const override {
    return "one numpy array, named after its file; a folder of them opens as one set; no BF16";
  }
  std::size_t max_tensors() const override { return 1; }

  std::unique_ptr<TensorFile> open(const std::filesystem::path& path) const override {
    return std::make_unique<NpyFiles>(path, std::vector{path});
  }

  void write(const std::filesystem::path& path, const std::vector<HostTensor>& tensors,
             const TensorMetadata&) const override {
    check_writable(path, tensors);
    if (tensors.size() != 1) {
      throw UnsupportedError(
          fmt::format("{}: an .npy file holds 1 tensor, found {}; write "
                      "safetensors or HDF5 instead",
                      path.string(), tensors.size()));
    }
    const HostTensor& tensor = tensors.front();
    const std::string header =
        npy_header_text(tensor_place(path.string(), tensor.info.name), tensor.info);
    AtomicFile file(path);
    require_disk_space(path, total_bytes(tensors));
    file.write(header);
    file.write(tensor.data.get(), tensor.info.num_bytes);
    file.commit();
  }
};

}  // namespace

std::unique_ptr<TensorFile> open_npy_folder(const std::filesystem::path& folder) {
  std::vector<std::filesystem::path> files;
  std::error_code error;
  for (std::filesystem::directory_iterator entry(folder, error), end; !error && entry != end;
       entry.increment(error)) {
    if (entry->path().extension() == ".npy") files.push_back(entry->path());
  }
  if (error) {
    throw InputError(fmt::format("{}: cannot be listed: {}", folder.string(), error.message()));
  }
  if (files.empty()) {
    throw InputError(
        fmt::format("{}: the folder holds neither model.safetensors (or its index) "
                    "nor .npy files",
                    folder.string()));
  }
  std::sort(files.begin(), files.end());  // folders have no order
  return std::make_unique<NpyFiles>(folder, files);
}

const Format& format_npy() {
  static const NpyFormat format;
  return format;
}

}  // namespace s2o
