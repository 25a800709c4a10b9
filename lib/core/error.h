// Error types of the host library, on top of kernels/common/error.h.
#pragma once

#include "kernels/common/error.h"

namespace s2o {

// A config, a flag or a parameter is wrong (exit code 2). Message: file: json.path: what, and what
// was expected.
class ConfigError : public Error {
 public:
  using Error::Error;
};

// An input file is missing, broken or does not fit (exit code 3). Message: file: tensor or offset:
// found, expected.
class InputError : public Error {
 public:
  using Error::Error;
};

}  // namespace s2o
