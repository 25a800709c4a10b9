// Exception types that kernels may throw. Each maps to one exit code in app/main.cpp.
#pragma once

#include <stdexcept>
#include <string>

namespace s2o {

// Base of every error that s2o reports on purpose. The message says where, which, found, expected.
class Error : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

// This build or machine cannot do what was asked (exit code 4): no GPU, no kernel for the
// architecture, too little memory (the message then holds bytes needed and bytes free).
class UnsupportedError : public Error {
 public:
  using Error::Error;
};

// A CUDA call failed (exit code 5).
class CudaError : public Error {
 public:
  using Error::Error;
};

// Work was cancelled by SIGINT or SIGTERM (exit code 130).
class InterruptedError : public Error {
 public:
  InterruptedError() : Error("interrupted") {}
};

}  // namespace s2o
