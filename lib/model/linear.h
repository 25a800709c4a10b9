// Linear layers on the CPU: fp32 activations times a weight that stays in the dtype of its file.
#pragma once

#include <cstdint>
#include <vector>

#include "lib/core/host_tensor.h"

namespace s2o {

struct Linear {
  HostTensor weight;        // [out_features, in_features], F32, F16 or BF16
  std::vector<float> bias;  // [out_features], may be empty

  std::int64_t out_features() const { return weight.info.shape[0]; }
  std::int64_t in_features() const { return weight.info.shape[1]; }
};

// Rows of one task of the parallel loops. Fixed, so that results do not depend on the number of
// threads; tall enough that converting a weight block costs little beside multiplying by it.
inline constexpr std::int64_t kLinearRows = 256;

// y[r, c] = sum_i x[r, i] * weight[first_feature + c, i] + bias[first_feature + c], on this thread.
// x [rows, in_features]; y [rows, num_features] with `y_stride` elements between rows.
// `accumulate` adds to y instead of overwriting it.
void linear_block(const Linear& linear, std::int64_t first_feature, std::int64_t num_features,
                  const float* x, std::int64_t rows, float* y, std::int64_t y_stride,
                  bool accumulate);

// All features, parallel over blocks of rows and features. y [rows, out_features].
void apply_linear(const Linear& linear, const float* x, std::int64_t rows, float* y,
                  bool accumulate);

// y[r] = x[r] / sqrt(mean(x[r]^2) + eps) * weight, rows of `size` elements, on this thread.
// x and y may be the same.
void rms_norm_rows(const float* x, const float* weight, float eps, std::int64_t rows,
                   std::int64_t size, float* y);

}  // namespace s2o
