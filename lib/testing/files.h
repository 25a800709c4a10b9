// Files that tests make, break and read back. Header-only, tests only.
#pragma once

#include <gtest/gtest.h>
#include <stdlib.h>
#include <unistd.h>

#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <memory>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "lib/core/host_tensor.h"

namespace s2o::testing_support {

inline std::filesystem::path data_folder() {
  return std::filesystem::path(S2O_SOURCE_DIR) / "data";
}

// For tests that write thousands of small files: memory where the system has such a folder.
inline std::string fast_temp_folder() {
  return access("/dev/shm", W_OK) == 0 ? "/dev/shm" : ::testing::TempDir();
}

// An empty folder that goes away with the object.
class TempFolder {
 public:
  explicit TempFolder(const std::string& parent = ::testing::TempDir()) {
    std::string name = parent + "/s2o_test_XXXXXX";
    if (mkdtemp(name.data()) == nullptr) throw std::runtime_error("mkdtemp failed");
    path_ = name;
  }
  ~TempFolder() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  TempFolder(const TempFolder&) = delete;
  TempFolder& operator=(const TempFolder&) = delete;

  const std::filesystem::path& path() const { return path_; }
  std::filesystem::path operator/(const std::string& name) const { return path_ / name; }

 private:
  std::filesystem::path path_;
};

inline void write_file(const std::filesystem::path& path, const std::string& text) {
  std::ofstream stream(path, std::ios::binary);
  stream << text;
  if (!stream.flush()) throw std::runtime_error(path.string() + ": cannot be written");
}

inline std::string read_file(const std::filesystem::path& path) {
  std::ifstream stream(path, std::ios::binary);
  if (!stream) throw std::runtime_error(path.string() + ": cannot be read");
  return {std::istreambuf_iterator<char>(stream), {}};
}

// The message of the exception of type Error that `action` throws; "" (and a failure) when it
// throws none. Other exceptions pass through.
template <class Error, class Action>
std::string message_of(Action&& action) {
  try {
    action();
  } catch (const Error& error) {
    return error.what();
  }
  ADD_FAILURE() << "no exception";
  return "";
}

// The bytes of a value, little-endian as this machine.
template <class T>
std::string bytes_of(const T& value) {
  return {reinterpret_cast<const char*>(&value), sizeof value};
}

// A tensor that owns a copy of `bytes`.
inline HostTensor make_tensor(std::string name, DType dtype, std::vector<std::int64_t> shape,
                              const std::string& bytes) {
  // One byte more: an empty tensor has an address too.
  std::shared_ptr<std::byte[]> data(new std::byte[bytes.size() + 1]);
  std::memcpy(data.get(), bytes.data(), bytes.size());
  return {.info = {.name = std::move(name),
                   .dtype = dtype,
                   .shape = std::move(shape),
                   .num_bytes = bytes.size()},
          .file = "test",
          .data = {data, data.get()}};
}

inline std::string data_of(const HostTensor& tensor) {
  return {reinterpret_cast<const char*>(tensor.data.get()), tensor.info.num_bytes};
}

}  // namespace s2o::testing_support
