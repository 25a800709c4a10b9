// What this binary was built from; part of every result.
#pragma once

#include <string>

namespace s2o {

std::string version();       // "0.1.0"
std::string git_commit();    // "1a2b3c4d5e6f", with "-dirty" for uncommitted changes, or "unknown"
std::string version_text();  // "s2o 0.1.0 (1a2b3c4d5e6f)"

}  // namespace s2o
