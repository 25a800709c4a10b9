// Errors that cross processes: type and text.
#pragma once

#include <exception>
#include <nlohmann/json.hpp>

namespace s2o {

nlohmann::ordered_json failure_to_json(const std::exception_ptr& failure);
// An exception of the same type of ours with `prefix` before its text.
std::exception_ptr failure_from_json(const nlohmann::ordered_json& json,
                                     const std::string& prefix = "");

}  // namespace s2o
