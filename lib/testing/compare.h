// Judges the result of a kernel against the fp64 reference. Tests only.
#pragma once

#include <string>
#include <vector>

#include "lib/testing/plan_cases.h"

namespace s2o::testing {

struct KernelResult {
  std::vector<float> out;        // [num_q_heads, seqlen, head_dim]
  std::vector<float> lse;        // [num_q_heads, seqlen]
  std::vector<TileStats> stats;  // [num_passes, num_plan_heads, num_q_tiles]
};

struct Comparison {
  double out_relative_l2 = 0.0;       // over all elements; NaN if a position of a NaN differs
  double lse_max_error = 0.0;         // over rows that are not empty
  std::int64_t empty_mismatches = 0;  // rows that are empty (lse -inf) in one result only
  std::int64_t stop_mismatches = 0;   // tiles that stopped at another step
  std::int64_t stat_mismatches = 0;   // tiles whose other counters differ
  std::string worst;                  // where the largest output error is
};

// Reference in fp64 over the same stored inputs.
KernelResult reference_result(const AttentionInput& input, const SparsePlan& plan);
Comparison compare(const AttentionInput& input, const KernelResult& actual,
                   const KernelResult& expected);

}  // namespace s2o::testing
