// Datasets that are packed by a filter of another program: h5py's LZF, Blosc, ...
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <array>

#include "lib/core/error.h"
#include "lib/core/hdf5_handle.h"
#include "lib/input/formats/format.h"
#include "lib/testing/files.h"

namespace s2o {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using testing_support::data_of;
using testing_support::message_of;
using testing_support::TempFolder;

constexpr H5Z_filter_t kNoSuchFilter = 511;  // of the range for tests

// One chunk of 4 bytes, "packed" by the filter or, with `skipped`, stored as it is.
void write_dataset(const std::filesystem::path& path, bool skipped) {
  const Hdf5QuietErrors quiet;
  const Hdf5Handle file(H5Fcreate(path.c_str(), H5F_ACC_TRUNC, H5P_DEFAULT, H5P_DEFAULT));
  const std::array<hsize_t, 1> extent = {4};
  const Hdf5Handle space(H5Screate_simple(1, extent.data(), nullptr));
  const Hdf5Handle layout(H5Pcreate(H5P_DATASET_CREATE));
  ASSERT_GE(H5Pset_chunk(layout.get(), 1, extent.data()), 0);
  ASSERT_GE(H5Pset_filter(layout.get(), kNoSuchFilter, H5Z_FLAG_OPTIONAL, 0, nullptr), 0);
  const Hdf5Handle dataset(H5Dcreate2(file.get(), "q", H5T_STD_U8LE, space.get(), H5P_DEFAULT,
                                      layout.get(), H5P_DEFAULT));
  ASSERT_TRUE(dataset.valid());
  const std::array<hsize_t, 1> begin = {0};
  ASSERT_GE(H5Dwrite_chunk(dataset.get(), H5P_DEFAULT, skipped ? 1 : 0, begin.data(), 4, "abcd"),
            0);
}

TEST(hdf5_filter, one_that_is_not_here_is_named_with_what_to_set) {
  const TempFolder folder;
  write_dataset(folder / "x.h5", /*skipped=*/false);
  const auto file = open_tensor_file(folder / "x.h5");
  EXPECT_THAT(message_of<InputError>([&] { file->read("q"); }),
              AllOf(HasSubstr("tensor 'q': packed by the HDF5 filter"), HasSubstr("(number 511)"),
                    HasSubstr("HDF5_PLUGIN_PATH")));
}

TEST(hdf5_filter, one_that_was_skipped_is_not_needed) {
  const TempFolder folder;
  write_dataset(folder / "x.h5", /*skipped=*/true);
  EXPECT_EQ(data_of(open_tensor_file(folder / "x.h5")->read("q")), "abcd");
}

}  // namespace
}  // namespace s2o
