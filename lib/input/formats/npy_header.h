// The header of a numpy array file, shared by .npy files and the members of an .npz archive.
#pragma once

#include <filesystem>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "lib/input/formats/format.h"

namespace s2o {

struct NpyHeader {
  DType dtype = DType::kF32;
  bool fortran_order = false;
  std::vector<std::int64_t> shape;
  std::size_t data_offset = 0;  // bytes from the start of the file
  std::size_t num_bytes = 0;    // of the data
};

// Longest header that is read, magic included. numpy writes ~128 bytes.
inline constexpr std::size_t kMaxNpyHeaderBytes = 1 << 16;

// `bytes` is the start of the file, at least the header or kMaxNpyHeaderBytes of it. Versions 1, 2
// and 3. InputError "<where>: ..." for anything that is not a little-endian array of a DType, or
// whose data does not fill the file's `file_bytes`.
NpyHeader parse_npy_header(const std::string& where, std::span<const std::byte> bytes,
                           std::uint64_t file_bytes);

// Version 1 header, padded so that the data begins at a multiple of 64 bytes. UnsupportedError for
// BF16, which numpy does not have.
std::string npy_header_text(const std::string& where, const TensorInfo& info);

// The array behind `data`, in C order. Shares `data` unless the elements have to be moved.
std::shared_ptr<const std::byte> npy_data_in_c_order(const std::string& where,
                                                     const NpyHeader& header,
                                                     std::shared_ptr<const std::byte> data);

// The .npy files of a folder as one TensorFile; "q.npy" holds tensor "q". InputError when there is
// none.
std::unique_ptr<TensorFile> open_npy_folder(const std::filesystem::path& folder);

}  // namespace s2o
