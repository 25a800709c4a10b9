// Model directories for tests: copies of the fixtures that a test may break.
#pragma once

#include <gtest/gtest.h>
#include <stdlib.h>

#include <filesystem>
#include <fstream>
#include <functional>
#include <nlohmann/json.hpp>
#include <stdexcept>
#include <string>

namespace s2o::testing_support {

inline std::filesystem::path data_folder() {
  return std::filesystem::path(S2O_SOURCE_DIR) / "data";
}

inline std::filesystem::path fixture_model(const std::string& name) {
  return data_folder() / "fixtures/models" / name;
}

// An empty folder that goes away with the object.
class TempFolder {
 public:
  TempFolder() {
    std::string name = testing::TempDir() + "/s2o_model_XXXXXX";
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

inline void copy_model(const std::string& fixture, const std::filesystem::path& folder) {
  std::filesystem::copy(fixture_model(fixture), folder, std::filesystem::copy_options::recursive);
}

using ConfigEdit = std::function<void(nlohmann::json&)>;

inline void edit_config(const std::filesystem::path& folder, const ConfigEdit& edit) {
  nlohmann::json config = nlohmann::json::parse(std::ifstream(folder / "config.json"));
  edit(config);
  write_file(folder / "config.json", config.dump());
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

}  // namespace s2o::testing_support
