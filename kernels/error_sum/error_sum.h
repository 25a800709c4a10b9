// How far one tensor is from another, as fp64 sums per head: what output errors are made of.
//
//   out, reference [num_heads, count], fp32
//
// Every difference, product and sum is fp64. NaN is never dropped: a NaN on either side makes
// max_abs_error and the sums of its head NaN.
#pragma once

#include <cstdint>
#include <vector>

struct CUstream_st;

namespace s2o {

struct ErrorSums {
  double error = 0.0;          // sum of (out - reference)^2
  double reference = 0.0;      // sum of reference^2
  double output = 0.0;         // sum of out^2
  double dot = 0.0;            // sum of out * reference
  double max_abs_error = 0.0;  // largest |out - reference|
  std::int64_t nonfinite = 0;  // elements of out that are NaN or infinite

  ErrorSums& operator+=(const ErrorSums& other);
};

// The definition. One entry per head; sums run in element order, so they do not depend on the
// number of threads.
std::vector<ErrorSums> error_sums_ref(int num_heads, std::int64_t count, const float* out,
                                      const float* reference);

// The same on the device, CUDA builds only: `sums` [num_heads] are overwritten. All pointers are
// device pointers; `partial` has num_heads * kErrorSumBlocks entries. Sums run in a fixed order
// that is not the reference's, so values agree to rounding (about 1e-15) and are repeatable.
inline constexpr int kErrorSumBlocks = 64;  // blocks a head
void launch_error_sums(int num_heads, std::int64_t count, const float* out, const float* reference,
                       ErrorSums* partial, ErrorSums* sums, CUstream_st* stream);

}  // namespace s2o
