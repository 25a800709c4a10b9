// Every reader on thousands of damaged files: it has to succeed or to say what is wrong. Under the
// asan preset this also shows reads outside the file. The damage is the same in every run.
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cstring>

#include "lib/core/error.h"
#include "lib/core/random.h"
#include "lib/input/formats/format.h"
#include "lib/testing/files.h"

namespace s2o {
namespace {

using testing_support::data_folder;
using testing_support::fast_temp_folder;
using testing_support::read_file;
using testing_support::TempFolder;
using testing_support::write_file;

constexpr std::uint64_t kDrawsPerFile = 16;

// Integers at which arithmetic on lengths and offsets breaks.
constexpr std::array<std::uint64_t, 8> kEdges = {
    0, 1, 0x7f, 0xffff, 0x7fffffff, 0xffffffff, 0x7fffffffffffffff, 0xffffffffffffffff};

std::string damage(std::string bytes, std::uint64_t round) {
  const CounterRandom random(/*seed=*/20, /*stream=*/round);
  const auto draw = [&random](std::uint64_t index, std::size_t n) {
    return static_cast<std::size_t>(random.below(index, static_cast<std::int64_t>(n)));
  };
  const std::size_t num_edits = 1 + draw(0, 3);
  for (std::size_t edit = 0; edit < num_edits; ++edit) {
    const std::uint64_t base = 1 + edit * 4;
    if (bytes.empty()) break;
    const std::size_t at = draw(base, bytes.size());
    switch (draw(base + 1, 8)) {
      case 0:
        bytes.resize(at);
        break;
      case 1:
        bytes.insert(at, draw(base + 2, 64) + 1, static_cast<char>(draw(base + 3, 256)));
        break;
      case 2:
        bytes.erase(at, draw(base + 2, 64) + 1);
        break;
      case 3:
      case 4: {
        const std::uint64_t edge = kEdges[draw(base + 2, kEdges.size())];
        const std::size_t width = std::size_t{1} << draw(base + 3, 4);
        std::memcpy(bytes.data() + at, &edge, std::min(width, bytes.size() - at));
        break;
      }
      case 5:
        bytes[at] = static_cast<char>("0123456789-[]{},:\"'"[draw(base + 2, 19)]);
        break;
      default:
        bytes[at] = static_cast<char>(bytes[at] ^ (1 << draw(base + 2, 8)));
        break;
    }
  }
  static_assert(1 + 3 * 4 <= kDrawsPerFile);
  return bytes;
}

// Reads up to `max_tensors` tensors, other ones each round, and touches every byte of them.
unsigned touch(const std::filesystem::path& path, int round, std::size_t max_tensors) {
  unsigned sum = 0;
  const auto file = open_tensor_file(path);
  const auto& infos = file->tensors();
  for (std::size_t n = 0; n < std::min(max_tensors, infos.size()); ++n) {
    const TensorInfo& info = infos[(static_cast<std::size_t>(round) + n) % infos.size()];
    const HostTensor tensor = file->read(info.name);
    EXPECT_EQ(tensor.info.num_bytes, info.num_bytes);
    for (std::size_t i = 0; i < info.num_bytes; ++i) {
      sum += std::to_integer<unsigned>(tensor.data.get()[i]);
    }
  }
  return sum;
}

struct Case {
  const char* fixture;
  int rounds;
  std::size_t max_tensors;
};

class FormatFuzz : public ::testing::TestWithParam<Case> {};

TEST_P(FormatFuzz, damaged_file_succeeds_or_is_an_input_error) {
  const std::filesystem::path fixture = data_folder() / "fixtures/formats" / GetParam().fixture;
  const std::string valid = read_file(fixture);
  const TempFolder folder(fast_temp_folder());
  const std::filesystem::path path = folder / GetParam().fixture;
  int refused = 0;
  for (int round = 0; round < GetParam().rounds; ++round) {
    write_file(path, damage(valid, static_cast<std::uint64_t>(round)));
    try {
      touch(path, round, GetParam().max_tensors);
    } catch (const InputError& error) {
      ++refused;
      EXPECT_NE(std::string(error.what()).find(path.filename().string()), std::string::npos)
          << "round " << round << ": the message does not name the file: " << error.what();
    } catch (const UnsupportedError&) {
      ++refused;  // a size that the file can hold and this machine cannot
    } catch (const std::exception& error) {
      ADD_FAILURE() << "round " << round << ": " << error.what();
    }
  }
  // Most damage hits something that matters in files as small as these.
  EXPECT_GT(refused, GetParam().rounds / 10);
}

INSTANTIATE_TEST_SUITE_P(
    readers, FormatFuzz,
    ::testing::Values(Case{"packed.safetensors", 4000, 8}, Case{"numpy_F32.npy", 3000, 1},
                      Case{"numpy_fortran.npy", 2000, 1}, Case{"numpy_stored.npz", 4000, 3},
                      Case{"numpy_deflated.npz", 4000, 3}, Case{"h5py.h5", 4000}),
    [](const auto& test) {
      std::string name = test.param.fixture;
      std::ranges::replace(name, '.', '_');
      return name;
    });

}  // namespace
}  // namespace s2o
