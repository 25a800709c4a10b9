// How far the output is from dense attention, out of fp64 sums per head (kernels/error_sum), added
// in head order.
#include <cmath>

#include "lib/metrics/metric.h"

namespace s2o {
namespace {

// The norm of an all-zero reference is no yardstick: equal outputs have no error, for others the
// ratio is undefined (null).
std::optional<double> relative_l2_of(const ErrorSums& sums) {
  if (sums.reference == 0.0) return sums.error == 0.0 ? std::optional(0.0) : std::nullopt;
  return std::sqrt(sums.error / sums.reference);
}
std::optional<double> cosine_of(const ErrorSums& sums) {
  if (sums.reference == 0.0 || sums.output == 0.0) return std::nullopt;
  return sums.dot / (std::sqrt(sums.output) * std::sqrt(sums.reference));
}

}  // namespace

const Metric& metric_output_error() {
  static const Metric kMetric = {
      {
          {.name = "mse",
           .help = "mean over heads, tokens and head_dim of (o - o_dense)^2",
           .per_head = true},
          {.name = "relative_l2", .help = "|o - o_dense| / |o_dense|", .per_head = true},
          {.name = "max_abs_error", .help = "largest |o - o_dense|", .in_text_table = false},
          {.name = "cosine",
           .help = "o . o_dense / (|o| |o_dense|), over all heads at once",
           .in_text_table = false},
          {.name = "reference_mean_square",
           .help = "mean of o_dense^2; mse / it is the relative MSE of a head",
           .per_head = true,
           .in_text_table = false,
           .is_column = false},
      },
      [](const MetricContext& context) -> std::vector<MetricValue> {
        const Problem& problem = context.input.problem;
        const auto count = static_cast<double>(problem.seqlen * problem.head_dim);
        const double nan = std::numeric_limits<double>::quiet_NaN();
        ErrorSums total;
        MetricValue mse, relative_l2, reference_mean_square;
        for (const ErrorSums& head : context.error_sums) {
          total += head;
          mse.per_head.push_back(head.error / count);
          relative_l2.per_head.push_back(relative_l2_of(head).value_or(nan));
          reference_mean_square.per_head.push_back(head.reference / count);
        }
        mse.value = total.error / (count * problem.num_q_heads);
        relative_l2.value = relative_l2_of(total);
        return {mse,
                relative_l2,
                {.value = total.max_abs_error},
                {.value = cosine_of(total)},
                reference_mean_square};
      }};
  return kMetric;
}

}  // namespace s2o
