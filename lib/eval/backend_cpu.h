// The CPU backend; see backend.h.
#pragma once

#include <memory>
#include <string>

#include "lib/eval/backend.h"

namespace s2o {

std::unique_ptr<Backend> make_cpu_backend();
// "<processor>, 2 threads"
std::string cpu_description();
// Backend::context
nlohmann::ordered_json cpu_context();

}  // namespace s2o
