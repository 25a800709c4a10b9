// The error of a run from a few rows of each layer whose attention was computed exactly.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "kernels/row_check/row_check.h"

namespace s2o {

// One row out of each of `count` equal parts of [0, seqlen), random but fixed by seed and layer.
// Where seqlen is less than count, every row.
std::vector<std::int64_t> checked_rows(std::int64_t seqlen, int count, std::uint64_t seed,
                                       int layer);

// An estimate with half of its 95 % interval, infinity where a layer has one row.
struct ErrorEstimate {
  double value = 0.0;
  double margin = 0.0;
};

// Sum over layers of weights[l] * |out - exact|^2 / |exact|^2, both squares summed over all heads
// and rows of the layer. Sums over sampled rows estimate sums over all without bias; their ratio is
// off by the inverse of the number of rows. `layers` [num_layers][num_q_heads, rows].
ErrorEstimate estimate_error(const std::vector<std::vector<RowError>>& layers, int num_q_heads,
                             std::span<const double> weights);

}  // namespace s2o
