// Who speaks, where several processes log to one stderr.
#pragma once

#include <string>

namespace s2o {

// Comes before every message from now on: "rank 1: ".
void set_log_prefix(std::string prefix);

}  // namespace s2o
