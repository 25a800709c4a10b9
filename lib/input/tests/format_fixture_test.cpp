// Files that numpy, h5py and a hand-packed script wrote (scripts/make_format_fixtures.py).
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>
#include <string>

#include "kernels/common/bf16.h"
#include "lib/core/error.h"
#include "lib/input/formats/format.h"
#include "lib/testing/files.h"

namespace s2o {
namespace {

using ::testing::Contains;
using ::testing::HasSubstr;
using ::testing::Not;
using testing_support::bytes_of;
using testing_support::data_folder;
using testing_support::data_of;
using testing_support::message_of;
using testing_support::TempFolder;

std::filesystem::path fixture(const std::string& name) {
  return data_folder() / "fixtures/formats" / name;
}

// The bytes of `count` elements by the rule of the script.
std::string expected_bytes(DType dtype, std::int64_t count) {
  std::string bytes;
  for (std::int64_t i = 0; i < count; ++i) {
    const std::int64_t residue = 7 * i % 37;
    const double value = static_cast<double>(residue - 18) / 4;
    switch (dtype) {
      case DType::kF64:
        bytes += bytes_of(value);
        break;
      case DType::kF32:
        bytes += bytes_of(static_cast<float>(value));
        break;
      case DType::kF16:
        bytes += bytes_of(float_to_fp16(static_cast<float>(value)));
        break;
      case DType::kBF16:
        bytes += bytes_of(float_to_bf16(static_cast<float>(value)));
        break;
      case DType::kI64:
        bytes += bytes_of(residue - 18);
        break;
      case DType::kI32:
        bytes += bytes_of(static_cast<std::int32_t>(residue - 18));
        break;
      case DType::kI16:
        bytes += bytes_of(static_cast<std::int16_t>(residue - 18));
        break;
      case DType::kI8:
        bytes += bytes_of(static_cast<std::int8_t>(residue - 18));
        break;
      case DType::kU32:
        bytes += bytes_of(static_cast<std::uint32_t>(residue));
        break;
      case DType::kU16:
        bytes += bytes_of(static_cast<std::uint16_t>(residue));
        break;
      case DType::kU8:
        bytes += bytes_of(static_cast<std::uint8_t>(residue));
        break;
      case DType::kBool:
        bytes += bytes_of(static_cast<std::uint8_t>(i % 3 == 0));
        break;
    }
  }
  return bytes;
}

void expect_tensor(const TensorFile& file, const std::string& name, DType dtype,
                   const std::vector<std::int64_t>& shape = {2, 3, 4}) {
  const HostTensor tensor = file.read(name);
  EXPECT_EQ(tensor.info.dtype, dtype) << name;
  EXPECT_EQ(tensor.info.shape, shape) << name;
  EXPECT_EQ(data_of(tensor), expected_bytes(dtype, tensor.num_elements())) << name;
}

constexpr std::array kNumbers = {DType::kF64, DType::kF32, DType::kF16, DType::kI64,
                                 DType::kI32, DType::kU32, DType::kU16, DType::kI16,
                                 DType::kU8,  DType::kI8,  DType::kBool};

TEST(format_fixture, numpy_arrays_of_every_dtype) {
  for (const DType dtype : kNumbers) {
    const std::string stem = "numpy_" + std::string(dtype_name(dtype));
    expect_tensor(*open_tensor_file(fixture(stem + ".npy")), stem, dtype);
  }
}

TEST(format_fixture, numpy_layouts_and_header_versions) {
  const auto expect = [](const std::string& stem, const std::vector<std::int64_t>& shape) {
    expect_tensor(*open_tensor_file(fixture(stem + ".npy")), stem, DType::kF32, shape);
  };
  expect("numpy_fortran", {2, 3, 4});
  expect("numpy_scalar", {});
  expect("numpy_vector", {5});
  expect("numpy_empty", {0, 4});
  expect("numpy_version_2", {2, 3, 4});
  expect("numpy_version_3", {2, 3, 4});
}

TEST(format_fixture, numpy_types_that_mean_nothing_here_are_refused) {
  const auto message = [](const std::string& stem) {
    return message_of<InputError>([&] { open_tensor_file(fixture(stem + ".npy")); });
  };
  EXPECT_THAT(message("refused_big_endian"),
              HasSubstr("dtype is '>f4', big-endian; expected '<f4'"));
  EXPECT_THAT(message("refused_void"), HasSubstr("numpy has no bfloat16"));
  EXPECT_THAT(message("refused_structured"), HasSubstr("a structured dtype"));
  EXPECT_THAT(message("refused_complex"), HasSubstr("dtype is '<c8', expected one of: f8, f4"));
  EXPECT_THAT(message("refused_object"), HasSubstr("dtype is '|O'"));
}

TEST(format_fixture, numpy_archives_stored_deflated_and_streamed) {
  for (const char* name : {"numpy_stored.npz", "numpy_deflated.npz", "numpy_streamed.npz"}) {
    const auto file = open_tensor_file(fixture(name));
    EXPECT_EQ(file->tensors().size(), 3u) << name;
    expect_tensor(*file, "q", DType::kF16);
    expect_tensor(*file, "k", DType::kF32);
    expect_tensor(*file, "v", DType::kF64);
  }
}

TEST(format_fixture, folder_of_numpy_arrays_is_one_set) {
  const TempFolder folder;
  for (const char* name : {"numpy_F32.npy", "numpy_F16.npy"}) {
    std::filesystem::copy(fixture(name), folder / name);
  }
  const auto file = open_tensor_file(folder.path());
  EXPECT_EQ(file->tensors().size(), 2u);
  EXPECT_EQ(file->tensors().front().name, "numpy_F16");
  expect_tensor(*file, "numpy_F16", DType::kF16);
  expect_tensor(*file, "numpy_F32", DType::kF32);
}

TEST(format_fixture, h5py_datasets_of_every_kind) {
  const auto file = open_tensor_file(fixture("h5py.h5"));
  for (const DType dtype : kNumbers) expect_tensor(*file, std::string(dtype_name(dtype)), dtype);
  expect_tensor(*file, "BF16", DType::kBF16);
  expect_tensor(*file, "BF16_fixed", DType::kBF16);
  expect_tensor(*file, "group/deeper/q", DType::kF32);
  expect_tensor(*file, "big_endian_F32", DType::kF32);
  expect_tensor(*file, "big_endian_F16", DType::kF16);
  expect_tensor(*file, "scalar", DType::kF32, {});
  expect_tensor(*file, "chunked", DType::kF32);
  expect_tensor(*file, "packed", DType::kF32);
  EXPECT_EQ(file->metadata(), (TensorMetadata{{"model", "made-up"}}));
}

TEST(format_fixture, h5py_datasets_that_are_no_whole_tensors_are_refused) {
  const auto file = open_tensor_file(fixture("h5py.h5"));
  std::vector<std::string> names;
  for (const TensorInfo& info : file->tensors()) names.push_back(info.name);
  for (const char* absent : {"text", "soft", "outside", "refused_sparse", "refused_complex"}) {
    EXPECT_THAT(names, Not(Contains(absent)));
  }
  const auto message = [&file](const std::string& name) {
    return message_of<InputError>([&] { file->read(name); });
  };
  EXPECT_THAT(message("text"), HasSubstr("tensor 'text': is of another HDF5 type"));
  EXPECT_THAT(message("refused_complex"), HasSubstr("is of another HDF5 type"));
  EXPECT_THAT(message("refused_null"), HasSubstr("is of another HDF5 type"));
  EXPECT_THAT(message("refused_unwritten"),
              HasSubstr("0 bytes are stored, expected 80 for F32 of shape [4, 5]"));
  EXPECT_THAT(message("refused_half_written"), HasSubstr("1 of 2 chunks are written"));
  EXPECT_THAT(message("refused_sparse"), HasSubstr("0 of 1125899906842624 chunks are written"));
  EXPECT_THAT(message("outside"), HasSubstr("no tensor 'outside'"));
}

TEST(format_fixture, hand_packed_safetensors_lists_in_data_order) {
  const auto file = open_tensor_file(fixture("packed.safetensors"));
  std::vector<std::string> names;
  for (const TensorInfo& info : file->tensors()) names.push_back(info.name);
  EXPECT_EQ(names, (std::vector<std::string>{"none", "q", "k", "v", "ids"}));
  EXPECT_EQ(file->metadata(), (TensorMetadata{{"made_by", "hand"}}));
  expect_tensor(*file, "q", DType::kBF16);
  expect_tensor(*file, "k", DType::kF32);
  expect_tensor(*file, "v", DType::kF16);
  expect_tensor(*file, "ids", DType::kI64, {5});
  expect_tensor(*file, "none", DType::kF32, {0, 4});
}

}  // namespace
}  // namespace s2o
