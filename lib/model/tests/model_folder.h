// Model directories for tests: copies of the fixtures that a test may break.
#pragma once

#include <filesystem>
#include <fstream>
#include <functional>
#include <nlohmann/json.hpp>
#include <string>

#include "lib/testing/files.h"

namespace s2o::testing_support {

inline std::filesystem::path fixture_model(const std::string& name) {
  return data_folder() / "fixtures/models" / name;
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

}  // namespace s2o::testing_support
