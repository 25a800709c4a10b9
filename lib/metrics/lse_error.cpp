// Mean |lse - lse_dense| over the rows that visit at least one key; null when no row does.
#include <cmath>
#include <cstddef>

#include "kernels/common/parallel.h"
#include "lib/metrics/metric.h"

namespace s2o {

const Metric& metric_lse_error() {
  static const Metric kMetric = {
      {{.name = "lse_error",
        .help = "mean |lse - lse_dense| over rows that visit a key, natural log",
        .in_text_table = false}},
      [](const MetricContext& context) -> std::vector<MetricValue> {
        const Problem& problem = context.input.problem;
        struct HeadSum {
          double error = 0.0;
          std::int64_t rows = 0;
        };
        std::vector<HeadSum> heads(static_cast<std::size_t>(problem.num_q_heads));
        parallel_for(problem.num_q_heads, [&](std::int64_t head) {
          const float* lse = context.lse.data() + head * problem.seqlen;
          const float* dense = context.reference.lse.data() + head * problem.seqlen;
          HeadSum sum;
          for (std::int64_t i = 0; i < problem.seqlen; ++i) {
            if (lse[i] == -std::numeric_limits<float>::infinity()) continue;
            sum.error += std::abs(static_cast<double>(lse[i]) - static_cast<double>(dense[i]));
            ++sum.rows;
          }
          heads[static_cast<std::size_t>(head)] = sum;
        });
        HeadSum total;
        for (const HeadSum& head : heads) {
          total.error += head.error;
          total.rows += head.rows;
        }
        if (total.rows == 0) return {MetricValue{}};
        return {{.value = total.error / static_cast<double>(total.rows)}};
      }};
  return kMetric;
}

}  // namespace s2o
