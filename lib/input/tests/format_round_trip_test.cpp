// Contract of every format in formats.def: what is written comes back, bit by bit; broken files and
// names are reported.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/resource.h>

#include <algorithm>
#include <array>

#include "lib/core/error.h"
#include "lib/core/random.h"
#include "lib/input/formats/format.h"
#include "lib/testing/files.h"

namespace s2o {
namespace {

using ::testing::HasSubstr;
using testing_support::data_of;
using testing_support::fast_temp_folder;
using testing_support::make_tensor;
using testing_support::message_of;
using testing_support::read_file;
using testing_support::TempFolder;
using testing_support::write_file;

constexpr std::array kAllDTypes = {DType::kF64, DType::kF32, DType::kF16, DType::kBF16,
                                   DType::kI64, DType::kI32, DType::kU32, DType::kU16,
                                   DType::kI16, DType::kU8,  DType::kI8,  DType::kBool};

// Random bits: NaNs and infinities included. Booleans are 0 or 1.
std::string random_bytes(DType dtype, std::size_t count, std::uint64_t seed) {
  const CounterRandom random(seed, 0);
  std::string bytes;
  for (std::size_t i = 0; i < count * dtype_bytes(dtype); ++i) {
    const std::uint64_t bits = random.bits(i);
    bytes += static_cast<char>(dtype == DType::kBool ? bits & 1 : bits & 0xff);
  }
  return bytes;
}

HostTensor random_tensor(const std::string& name, DType dtype, std::vector<std::int64_t> shape) {
  std::size_t count = 1;
  for (const std::int64_t extent : shape) count *= static_cast<std::size_t>(extent);
  return make_tensor(name, dtype, std::move(shape), random_bytes(dtype, count, count));
}

class FormatContract : public ::testing::TestWithParam<const Format*> {
 protected:
  std::filesystem::path file(const std::string& stem = "tensor") const {
    return folder_ / (stem + GetParam()->extensions().front());
  }
  bool holds_one_tensor() const { return GetParam()->name() == "npy"; }
  bool holds(DType dtype) const { return dtype != DType::kBF16 || GetParam()->name() != "npy"; }

  TempFolder folder_{fast_temp_folder()};  // flushing hundreds of files to a disk takes minutes
};
class WritableFormat : public FormatContract {};

TEST_P(WritableFormat, written_tensor_comes_back_bit_by_bit) {
  const std::vector<std::vector<std::int64_t>> shapes = {
      {}, {1}, {5}, {0}, {3, 0, 2}, {2, 3}, {1, 2, 3, 4}, {2, 1, 7}};
  for (const DType dtype : kAllDTypes) {
    if (!holds(dtype)) continue;
    for (const auto& shape : shapes) {
      const HostTensor written = random_tensor("tensor", dtype, shape);
      GetParam()->write(file(), {written});
      const auto opened = open_tensor_file(file());
      ASSERT_EQ(opened->tensors().size(), 1u);
      const HostTensor read = opened->read("tensor");
      EXPECT_EQ(read.info.name, "tensor");
      EXPECT_EQ(read.info.dtype, dtype) << dtype_name(dtype) << shape_text(shape);
      EXPECT_EQ(read.info.shape, shape) << dtype_name(dtype);
      EXPECT_EQ(data_of(read), data_of(written)) << dtype_name(dtype) << shape_text(shape);
    }
  }
}

TEST_P(WritableFormat, data_outlives_the_file_object) {
  const HostTensor written = random_tensor("tensor", DType::kF32, {9, 7});
  GetParam()->write(file(), {written});
  const HostTensor read = open_tensor_file(file())->read("tensor");
  // Writers replace by rename, so that the old data stays for those who hold it.
  GetParam()->write(file(), {random_tensor("tensor", DType::kF32, {1})});
  std::filesystem::remove(file());
  EXPECT_EQ(data_of(read), data_of(written));
}

TEST_P(WritableFormat, many_tensors_and_metadata_come_back) {
  std::vector<HostTensor> written;
  for (const DType dtype : kAllDTypes) {
    written.push_back(random_tensor(fmt::format("layer.{}/x", dtype_name(dtype)), dtype, {2, 3}));
  }
  if (holds_one_tensor()) {
    EXPECT_THAT(message_of<UnsupportedError>([&] { GetParam()->write(file(), written); }),
                HasSubstr("holds 1 tensor, found 12"));
    return;
  }
  const TensorMetadata metadata = {{"model", "tiny \"llama\""}, {"empty", ""}};
  GetParam()->write(file(), written, metadata);
  const auto opened = open_tensor_file(file());
  EXPECT_EQ(opened->metadata(), metadata);
  EXPECT_EQ(opened->tensors().size(), written.size());
  for (const HostTensor& tensor : written) {
    EXPECT_EQ(data_of(opened->read(tensor.info.name)), data_of(tensor)) << tensor.info.name;
    EXPECT_EQ(opened->read(tensor.info.name).info.dtype, tensor.info.dtype);
  }
}

TEST_P(WritableFormat, unknown_tensor_suggests_the_nearest) {
  GetParam()->write(file(), {random_tensor("tensor", DType::kF32, {2})});
  EXPECT_THAT(message_of<InputError>([&] { open_tensor_file(file())->read("tenzor"); }),
              HasSubstr("no tensor 'tenzor', did you mean 'tensor'?; tensors: tensor"));
}

TEST_P(WritableFormat, every_truncation_is_an_input_error) {
  GetParam()->write(file(), {random_tensor("tensor", DType::kF16, {3, 4, 5})});
  const std::string bytes = read_file(file());
  // All lengths of small files; HDF5 pads its structures, so a few lengths of it tell as much.
  const std::size_t step = std::max<std::size_t>(1, bytes.size() / 300);
  for (std::size_t size = 0; size < bytes.size(); size += step) {
    write_file(file(), bytes.substr(0, size));
    const std::string message = message_of<InputError>([&] {
      const auto opened = open_tensor_file(file());
      opened->read("tensor");
    });
    EXPECT_THAT(message, HasSubstr(file().filename().string())) << size << " bytes";
  }
}

TEST_P(FormatContract, missing_file_folder_and_other_content_are_input_errors) {
  EXPECT_THAT(message_of<InputError>([&] { open_tensor_file(file("missing")); }),
              HasSubstr("no such file"));
  write_file(file("other"), "This is a text file, long enough to hold any header that is short.\n");
  EXPECT_THAT(message_of<InputError>([&] { open_tensor_file(file("other")); }),
              HasSubstr(file("other").string()));
  write_file(file("empty"), "");
  EXPECT_THAT(message_of<InputError>([&] { open_tensor_file(file("empty")); }),
              HasSubstr("file is empty"));
  std::filesystem::create_directory(file("folder"));
  EXPECT_THAT(message_of<InputError>([&] { GetParam()->open(file("folder")); }),
              HasSubstr("is a folder"));
  EXPECT_THAT(message_of<InputError>([&] { open_tensor_file(file("folder")); }),
              HasSubstr("holds neither model.safetensors"));
}

TEST_P(FormatContract, writer_reports_what_it_cannot_do) {
  const HostTensor tensor = random_tensor("tensor", DType::kF32, {2});
  if (!GetParam()->can_write()) {
    EXPECT_THROW(GetParam()->write(file(), {tensor}), UnsupportedError);
    return;
  }
  const std::filesystem::path lost = folder_ / "no/such/folder" / file().filename();
  EXPECT_THAT(message_of<ConfigError>([&] { GetParam()->write(lost, {tensor}); }),
              HasSubstr("no folder"));
  EXPECT_THAT(message_of<UnsupportedError>([&] {
                GetParam()->write(file(), {tensor, tensor});
              }),
              HasSubstr("occurs twice"));
  HostTensor nameless = tensor;
  nameless.info.name.clear();
  EXPECT_THROW(GetParam()->write(file(), {nameless}), UnsupportedError);
  HostTensor wrong = tensor;
  wrong.info.shape = {3};
  EXPECT_THROW(GetParam()->write(file(), {wrong}), std::logic_error);
  EXPECT_TRUE(std::filesystem::is_empty(folder_.path())) << "a failed write leaves nothing behind";
}

TEST_P(WritableFormat, full_disk_is_reported_and_leaves_nothing) {
  const HostTensor large = random_tensor("tensor", DType::kU8, {300'000});
  rlimit old_limit{};
  getrlimit(RLIMIT_FSIZE, &old_limit);
  const auto old_handler = signal(SIGXFSZ, SIG_IGN);
  const rlimit small{.rlim_cur = 100'000, .rlim_max = old_limit.rlim_max};
  setrlimit(RLIMIT_FSIZE, &small);
  const std::string message =
      message_of<UnsupportedError>([&] { GetParam()->write(file(), {large}); });
  setrlimit(RLIMIT_FSIZE, &old_limit);
  signal(SIGXFSZ, old_handler);
  EXPECT_THAT(message, HasSubstr("writing failed"));
  EXPECT_TRUE(std::filesystem::is_empty(folder_.path()));
  // The next one is not harmed.
  GetParam()->write(file(), {large});
  EXPECT_EQ(data_of(open_tensor_file(file())->read("tensor")), data_of(large));
}

std::vector<const Format*> writable_formats() {
  std::vector<const Format*> formats;
  for (const Format* format : all_formats()) {
    if (format->can_write()) formats.push_back(format);
  }
  return formats;
}

INSTANTIATE_TEST_SUITE_P(formats, WritableFormat, ::testing::ValuesIn(writable_formats()),
                         [](const auto& test) { return test.param->name(); });
INSTANTIATE_TEST_SUITE_P(formats, FormatContract, ::testing::ValuesIn(all_formats()),
                         [](const auto& test) { return test.param->name(); });

TEST(format, unknown_extension_lists_the_known_ones) {
  const std::string message = message_of<InputError>([] { format_of("dir/x.pt"); });
  EXPECT_THAT(message, HasSubstr("dir/x.pt: unknown file format"));
  for (const Format* format : all_formats()) {
    for (const std::string& extension : format->extensions()) {
      EXPECT_THAT(message, HasSubstr(extension));
    }
  }
}

TEST(format, extension_is_found_without_case) {
  EXPECT_EQ(format_of("A.SafeTensors").name(), "safetensors");
  EXPECT_EQ(format_of("model.safetensors.index.json").name(), "safetensors");
  EXPECT_EQ(format_of("x.HDF5").name(), "hdf5");
  EXPECT_EQ(format_of("x.h5").name(), "hdf5");
}

TEST(format, bfloat16_is_refused_by_npy) {
  const TempFolder folder;
  EXPECT_THAT(message_of<UnsupportedError>([&] {
                format_of("x.npy").write(folder / "x.npy", {random_tensor("x", DType::kBF16, {2})});
              }),
              HasSubstr("numpy has no BF16"));
}

}  // namespace
}  // namespace s2o
