// How far the output is from dense attention. Differences and sums are fp64, per head and then in
// head order, so the values do not depend on the number of threads.
#include <cmath>
#include <cstddef>

#include "kernels/common/parallel.h"
#include "lib/metrics/metric.h"

namespace s2o {
namespace {

// The larger value; a NaN on either side wins, so that it cannot hide.
double larger(double a, double b) { return std::isnan(a) || b <= a ? a : b; }

struct HeadSums {
  double error = 0.0;          // sum of (o - o_dense)^2
  double reference = 0.0;      // sum of o_dense^2
  double output = 0.0;         // sum of o^2
  double dot = 0.0;            // sum of o * o_dense
  double max_abs_error = 0.0;  // NaN once any difference is

  HeadSums& operator+=(const HeadSums& other) {
    error += other.error;
    reference += other.reference;
    output += other.output;
    dot += other.dot;
    max_abs_error = larger(max_abs_error, other.max_abs_error);
    return *this;
  }
  // The norm of an all-zero reference is no yardstick: equal outputs have no error, for others the
  // ratio is undefined (null).
  std::optional<double> relative_l2() const {
    if (reference == 0.0) return error == 0.0 ? std::optional(0.0) : std::nullopt;
    return std::sqrt(error / reference);
  }
  std::optional<double> cosine() const {
    if (reference == 0.0 || output == 0.0) return std::nullopt;
    return dot / (std::sqrt(output) * std::sqrt(reference));
  }
};

std::vector<HeadSums> sum_heads(const MetricContext& context) {
  const Problem& problem = context.input.problem;
  const std::int64_t count = problem.seqlen * problem.head_dim;
  std::vector<HeadSums> heads(static_cast<std::size_t>(problem.num_q_heads));
  parallel_for(problem.num_q_heads, [&](std::int64_t head) {
    const float* out = context.out.data() + head * count;
    const float* dense = context.reference.out.data() + head * count;
    HeadSums sums;
    for (std::int64_t i = 0; i < count; ++i) {
      const double o = out[i];
      const double d = dense[i];
      const double difference = std::abs(o - d);
      sums.error += difference * difference;
      sums.reference += d * d;
      sums.output += o * o;
      sums.dot += o * d;
      sums.max_abs_error = larger(sums.max_abs_error, difference);
    }
    heads[static_cast<std::size_t>(head)] = sums;
  });
  return heads;
}

class OutputError final : public Metric {
 public:
  const std::vector<MetricColumn>& columns() const override {
    static const std::vector<MetricColumn> kColumns = {
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
    };
    return kColumns;
  }

  std::vector<MetricValue> compute(const MetricContext& context) const override {
    const Problem& problem = context.input.problem;
    const auto count = static_cast<double>(problem.seqlen * problem.head_dim);
    const double nan = std::numeric_limits<double>::quiet_NaN();
    HeadSums total;
    MetricValue mse, relative_l2, reference_mean_square;
    for (const HeadSums& head : sum_heads(context)) {
      total += head;
      mse.per_head.push_back(head.error / count);
      relative_l2.per_head.push_back(head.relative_l2().value_or(nan));
      reference_mean_square.per_head.push_back(head.reference / count);
    }
    mse.value = total.error / (count * problem.num_q_heads);
    relative_l2.value = total.relative_l2();
    return {mse,
            relative_l2,
            {.value = total.max_abs_error},
            {.value = total.cosine()},
            reference_mean_square};
  }
};

}  // namespace

const Metric& metric_output_error() {
  static const OutputError kMetric;
  return kMetric;
}

}  // namespace s2o
