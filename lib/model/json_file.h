// JSON files of a model directory.
#pragma once

#include <filesystem>
#include <nlohmann/json.hpp>

namespace s2o {

// The object in a regular file of at most 1 MiB. InputError naming the file for anything else.
nlohmann::json read_json_object(const std::filesystem::path& file);

}  // namespace s2o
