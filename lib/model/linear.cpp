#include "lib/model/linear.h"

#include <Eigen/Core>
#include <algorithm>
#include <array>
#include <cmath>

#include "kernels/common/parallel.h"

namespace s2o {
namespace {

using RowMajor = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
using InputMap = Eigen::Map<const RowMajor>;
using OutputMap = Eigen::Map<RowMajor, 0, Eigen::OuterStride<>>;

constexpr std::int64_t kFeatures = 128;  // output features of one task

double sum_of_squares(const float* x, std::int64_t size) {
  constexpr std::int64_t kLanes = 8;
  std::array<double, kLanes> lanes{};
  std::int64_t i = 0;
  for (; i + kLanes <= size; i += kLanes) {
    for (std::int64_t lane = 0; lane < kLanes; ++lane) {
      const double value = x[i + lane];
      lanes[lane] += value * value;
    }
  }
  double sum = 0.0;
  for (; i < size; ++i) sum += static_cast<double>(x[i]) * x[i];
  for (const double lane : lanes) sum += lane;
  return sum;
}

}  // namespace

void linear_block(const Linear& linear, std::int64_t first_feature, std::int64_t num_features,
                  const float* x, std::int64_t rows, float* y, std::int64_t y_stride,
                  bool accumulate) {
  const std::int64_t in = linear.in_features();
  thread_local std::vector<float> weight;
  weight.resize(static_cast<std::size_t>(num_features * in));
  linear.weight.copy_float(first_feature * in, num_features * in, weight.data());

  const InputMap x_map(x, rows, in);
  const InputMap w_map(weight.data(), num_features, in);
  OutputMap y_map(y, rows, num_features, Eigen::OuterStride<>(y_stride));
  if (accumulate) {
    y_map.noalias() += x_map * w_map.transpose();
  } else {
    y_map.noalias() = x_map * w_map.transpose();
  }
  if (!linear.bias.empty()) {
    const Eigen::Map<const Eigen::RowVectorXf> bias(linear.bias.data() + first_feature,
                                                    num_features);
    y_map.rowwise() += bias;
  }
}

void apply_linear(const Linear& linear, const float* x, std::int64_t rows, float* y,
                  bool accumulate) {
  const std::int64_t out = linear.out_features();
  const std::int64_t row_blocks = (rows + kLinearRows - 1) / kLinearRows;
  const std::int64_t feature_blocks = (out + kFeatures - 1) / kFeatures;
  parallel_for(row_blocks * feature_blocks, [&](std::int64_t task) {
    const std::int64_t row = task / feature_blocks * kLinearRows;
    const std::int64_t feature = task % feature_blocks * kFeatures;
    linear_block(linear, feature, std::min(kFeatures, out - feature),
                 x + row * linear.in_features(), std::min(kLinearRows, rows - row),
                 y + row * out + feature, out, accumulate);
  });
}

void rms_norm_rows(const float* x, const float* weight, float eps, std::int64_t rows,
                   std::int64_t size, float* y) {
  for (std::int64_t row = 0; row < rows; ++row) {
    const float* in = x + row * size;
    float* out = y + row * size;
    const double mean = sum_of_squares(in, size) / static_cast<double>(size);
    const auto scale = static_cast<float>(1.0 / std::sqrt(mean + eps));
    for (std::int64_t i = 0; i < size; ++i) out[i] = in[i] * scale * weight[i];
  }
}

}  // namespace s2o
