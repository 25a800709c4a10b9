// Exact attention of a few rows, against what a method wrote there: an estimate of a run's error
// that costs a share of a percent of the run. Host-safe.
#pragma once

#include <cstdint>
#include <vector>

#include "kernels/common/device_input.h"

struct CUstream_st;

namespace s2o {

// Sums over head_dim of one row of one query head, fp32 accumulators.
struct RowError {
  double error = 0.0;      // of (out - exact)^2
  double reference = 0.0;  // of exact^2
};

// The definition, fp64. q [num_q_heads, seqlen, head_dim], k and v [num_kv_heads, seqlen,
// head_dim], out as q; returns [num_q_heads, rows.size()].
std::vector<RowError> row_errors_ref(const Problem& problem, const float* q, const float* k,
                                     const float* v, const float* out,
                                     const std::vector<std::int64_t>& rows);

// The same on the device, CUDA builds only; head_dim 64, 96, 128 or 256. All pointers are device
// pointers.
inline constexpr int kRowCheckKeys = 1024;  // of one block
struct RowCheckArgs {
  DeviceInput input;
  const void* out = nullptr;           // [num_q_heads, seqlen, head_dim], of the type of q
  const std::int64_t* rows = nullptr;  // [num_rows]
  int num_rows = 0;
  float* partial = nullptr;    // [row_check_partials()]
  RowError* errors = nullptr;  // [num_q_heads, num_rows], overwritten
};
// Entries of `partial`: output, maximum and sum of each block of keys.
std::int64_t row_check_partials(const Problem& problem, int num_rows);
void launch_row_check(const RowCheckArgs& args, CUstream_st* stream);

}  // namespace s2o
