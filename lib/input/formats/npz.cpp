// numpy's archive of arrays: a zip file with a member "<name>.npy" for each. Source: numpy.savez.
#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "lib/core/error.h"
#include "lib/core/mapped_file.h"
#include "lib/core/memory.h"
#include "lib/input/formats/npy_header.h"
#include "lib/input/formats/tensor_table.h"
#include "lib/input/formats/zip_archive.h"

namespace s2o {
namespace {

constexpr std::string_view kMemberExtension = ".npy";

class NpzFile : public TensorTable {
 public:
  explicit NpzFile(const std::filesystem::path& path)
      : TensorTable(path.string()), mapping_(MappedFile::open(path)) {
    for (ZipMember& member : read_zip_directory(file(), mapping_->bytes())) {
      if (!member.name.ends_with(kMemberExtension)) continue;
      add_array(std::move(member));
    }
  }

  HostTensor read(const std::string& name) const override {
    const std::size_t index = index_of(name);
    const auto& [member, header] = arrays_[index];
    const std::string where = tensor_place(file(), name);
    std::shared_ptr<const std::byte> data = load(where, member, header);
    return {.info = tensors()[index],
            .file = file(),
            .data = npy_data_in_c_order(where, header, std::move(data))};
  }

 private:
  struct Array {
    ZipMember member;
    NpyHeader header;
  };

  void add_array(ZipMember member) {
    const std::string name = member.name.substr(0, member.name.size() - kMemberExtension.size());
    const std::string where = tensor_place(file(), name);
    std::vector<std::byte> start(std::min<std::uint64_t>(member.num_bytes, kMaxNpyHeaderBytes));
    unpack_zip_prefix(where, mapping_->bytes(), member, start);
    NpyHeader header = parse_npy_header(where, start, member.num_bytes);
    add({.name = name,
         .dtype = header.dtype,
         .shape = header.shape,
         .num_bytes = header.num_bytes});
    arrays_.push_back({std::move(member), std::move(header)});
  }

  std::shared_ptr<const std::byte> load(const std::string& where, const ZipMember& member,
                                        const NpyHeader& header) const {
    const std::span<const std::byte> archive = mapping_->bytes();
    if (!member.is_deflated) {
      const auto stored = archive.subspan(member.offset, member.stored_bytes);
      check_zip_checksum(where, member, stored);
      return {mapping_, stored.data() + header.data_offset};
    }
    require_memory(member.num_bytes, where);
    std::shared_ptr<std::byte[]> unpacked(new std::byte[member.num_bytes]);
    unpack_zip_member(where, archive, member, {unpacked.get(), member.num_bytes});
    return {unpacked, unpacked.get() + header.data_offset};
  }

  std::shared_ptr<const MappedFile> mapping_;
  std::vector<Array> arrays_;  // in the order of tensors()
};

class NpzFormat : public Format {
 public:
  std::string name() const override { return "npz"; }
  std::vector<std::string> extensions() const override { return {".npz"}; }
  std::string summary() const override { return "numpy arrays in a zip archive; no BF16"; }
  std::size_t max_tensors() const override { return 0; }

  std::unique_ptr<TensorFile> open(const std::filesystem::path& path) const override {
    return std::make_unique<NpzFile>(path);
  }

  void write(const std::filesystem::path& path, const std::vector<HostTensor>&,
             const TensorMetadata&) const override {
    throw UnsupportedError(
        fmt::format("{}: .npz is read only; write safetensors or HDF5 instead", path.string()));
  }
};

}  // namespace

const Format& format_npz() {
  static const NpzFormat format;
  return format;
}

}  // namespace s2o
