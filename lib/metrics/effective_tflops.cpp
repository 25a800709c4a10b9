// Arithmetic rate of the attention on the pairs that it executed: a pair costs 2 * head_dim FLOPs
// in Q K^T and as many in P V.
#include "lib/metrics/metric.h"

namespace s2o {

const Metric& metric_effective_tflops() {
  static const Metric kMetric = {
      {{.name = "effective_tflops",
        .unit = "TFLOP/s",
        .help = "4 * head_dim FLOPs per executed pair / attention_latency_ms",
        .in_text_table = false}},
      [](const MetricContext& context) -> std::vector<MetricValue> {
        const std::optional<double> milliseconds = quantile(context.timings.attention_ms, 0.5);
        if (!milliseconds || *milliseconds <= 0.0) return {MetricValue{}};
        const double flops = 4.0 * context.input.problem.head_dim *
                             static_cast<double>(context.work.total.executed_pairs);
        return {{.value = flops / (*milliseconds * 1e9)}};
      }};
  return kMetric;
}

}  // namespace s2o
