#include "lib/core/version.h"

#include <fmt/format.h>

#include "s2o_version.h"

namespace s2o {

std::string version() { return S2O_VERSION; }
std::string git_commit() { return S2O_GIT_COMMIT; }
std::string version_text() { return fmt::format("s2o {} ({})", version(), git_commit()); }

}  // namespace s2o
