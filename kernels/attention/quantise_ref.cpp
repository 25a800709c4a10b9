#include <Eigen/Dense>
#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>
#include <numbers>
#include <string>

#include "kernels/attention/quantise.h"
#include "kernels/common/bf16.h"
#include "kernels/common/e4m3.h"
#include "kernels/common/error.h"
#include "kernels/common/parallel.h"

namespace s2o {
namespace {

using Rows = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
using InputRows = Eigen::Map<const Rows>;
using OutputRows = Eigen::Map<Rows>;

// Orthonormal: entry (i, j) is +-d^-1/2 by the parity of the bits that i and j share.
Eigen::MatrixXf hadamard(int d) {
  if (!std::has_single_bit(static_cast<unsigned>(d))) {
    throw UnsupportedError("compute fp8: head_dim is " + std::to_string(d) +
                           ", rotate_qk supports powers of two");
  }
  const float size = 1.0f / std::sqrt(static_cast<float>(d));
  return Eigen::MatrixXf::NullaryExpr(d, d, [size](Eigen::Index i, Eigen::Index j) {
    return std::popcount(static_cast<unsigned>(i & j)) % 2 == 0 ? size : -size;
  });
}

// Not below what numbers can be divided by.
float scale_of(float largest, float steps) {
  return std::max((largest == 0.0f ? 1.0f : largest) / steps, std::numeric_limits<float>::min());
}

// The largest size of a head's numbers.
float largest_of(const Rows& rows, const char* tensor, std::int64_t head) {
  const float largest = rows.cwiseAbs().maxCoeff<Eigen::PropagateNaN>();
  if (!std::isfinite(largest)) refuse_size(tensor, head, largest);
  return largest;
}

void check_spread(const Rows& k, float largest, std::int64_t head) {
  const double mean_square =
      k.cast<double>().squaredNorm() / static_cast<double>(std::max<Eigen::Index>(k.size(), 1));
  const double spread = largest / std::sqrt(std::max(mean_square, 1e-60));
  if (spread > kLargestSpread) refuse_spread(head, spread);
}

std::string refused_head(const char* tensor, std::int64_t head) {
  return "compute fp8: head " + std::to_string(head) + " of " + tensor + ": ";
}

}  // namespace

void refuse_size(const char* tensor, std::int64_t head, float largest) {
  throw UnsupportedError(refused_head(tensor, head) + "the largest size is " +
                         (std::isnan(largest) ? "nan" : "inf") + ", expected a finite one");
}
void refuse_spread(std::int64_t head, double spread) {
  throw UnsupportedError(refused_head("k", head) + "the largest size is " + std::to_string(spread) +
                         " times the root mean square, supported is " +
                         std::to_string(static_cast<int>(kLargestSpread)));
}
void refuse_logit_scale(std::int64_t head, float scale) {
  throw UnsupportedError(refused_head("q", head) + "a unit of the integer product is a logit of " +
                         std::to_string(scale) + ", supported is less than " +
                         std::to_string(kLargestLogitScale));
}

bool has_wide_values(const PlanView& plan) {
  return plan.stop.tau > 0.0f ||
         std::any_of(plan.passes, plan.passes + plan.num_passes, [](const PassView& pass) {
           return pass.key_order != nullptr || pass.gather_indices != nullptr;
         });
}

QuantisedValues quantise_ref(const Problem& problem, const float* q, const float* k, const float* v,
                             QuantiseRule rule, bool wide_values) {
  const int d = problem.head_dim;
  const Eigen::MatrixXf rotation =
      rule.rotate_qk ? hadamard(d) : Eigen::MatrixXf::Identity(d, d).eval();
  const auto head_rows = [&](const float* tensor, std::int64_t head) {
    return InputRows(tensor + problem.row_offset(static_cast<int>(head), 0), problem.seqlen, d);
  };
  const auto head_of = [&](std::vector<float>& tensor, std::int64_t head) {
    return OutputRows(tensor.data() + problem.row_offset(static_cast<int>(head), 0), problem.seqlen,
                      d);
  };
  QuantisedValues values;
  const auto kv_size = static_cast<std::size_t>(problem.row_offset(problem.num_kv_heads, 0));
  values.q.resize(static_cast<std::size_t>(problem.row_offset(problem.num_q_heads, 0)));
  values.k.resize(kv_size);
  values.v.resize(kv_size);
  values.lse_shift.resize(static_cast<std::size_t>(problem.num_q_heads * problem.seqlen));
  Rows means = Rows::Zero(problem.num_kv_heads, d);
  std::vector<float> key_scales(static_cast<std::size_t>(problem.num_kv_heads));
  std::vector<float> largest_query_scale(static_cast<std::size_t>(problem.num_q_heads), 0.0f);

  for (std::int64_t head = 0; head < problem.num_kv_heads;
       ++head) {  // errors leave no other thread
    Rows rotated = head_rows(k, head) * rotation;
    if (rule.smooth_k) {
      means.row(head) = rotated.cast<double>().colwise().mean().cast<float>();
      rotated.rowwise() -= means.row(head);
    }
    const float largest = largest_of(rotated, "k", head);
    check_spread(rotated, largest, head);
    const float key_scale = scale_of(largest, 127.0f);
    key_scales[static_cast<std::size_t>(head)] = key_scale;
    head_of(values.k, head) = rotated.unaryExpr(
        [key_scale](float x) { return std::nearbyint(x / key_scale) * key_scale; });
    const Rows own = head_rows(v, head);
    const float value_scale =
        scale_of(largest_of(own, "v", head), wide_values ? 1.0f : kLargestE4m3);
    head_of(values.v, head) = own.unaryExpr([value_scale, wide_values](float x) {
      const float scaled = x / value_scale;
      return (wide_values ? round_fp16(scaled) : e4m3_to_float(float_to_e4m3(scaled))) *
             value_scale;
    });
  }
  for (std::int64_t head = 0; head < problem.num_q_heads; ++head) {
    largest_of(head_rows(q, head), "q", head);
  }
  parallel_for(problem.num_q_heads, [&](std::int64_t head) {
    const std::int64_t kv_head = head / problem.group_size();
    const Rows rotated = head_rows(q, head) * rotation;
    OutputRows target = head_of(values.q, head);
    const Eigen::VectorXf shift =
        problem.softmax_scale * (rotated * means.row(kv_head).transpose());
    for (std::int64_t row = 0; row < problem.seqlen; ++row) {
      const float scale = scale_of(rotated.row(row).cwiseAbs().maxCoeff(), 127.0f);
      float& largest = largest_query_scale[static_cast<std::size_t>(head)];
      largest = std::max(largest, scale);
      target.row(row) = rotated.row(row).unaryExpr(
          [scale](float x) { return std::nearbyint(x / scale) * scale; });
      values.lse_shift[static_cast<std::size_t>(head * problem.seqlen + row)] = shift(row);
    }
  });
  for (std::int64_t head = 0; head < problem.num_q_heads; ++head) {
    const float logit_scale = problem.softmax_scale * std::numbers::log2e_v<float> *
                              largest_query_scale[static_cast<std::size_t>(head)] *
                              key_scales[static_cast<std::size_t>(head / problem.group_size())];
    if (!(logit_scale < kLargestLogitScale)) refuse_logit_scale(head, logit_scale);
  }
  return values;
}

}  // namespace s2o
