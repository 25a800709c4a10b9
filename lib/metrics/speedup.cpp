// Dense attention of the same input on the same backend / planning and attention of the method.
#include "lib/metrics/metric.h"

namespace s2o {

const Metric& metric_speedup() {
  static const Metric kMetric = {
      {{.name = "speedup_vs_dense",
        .help = "time of dense attention on the same backend / total_latency_ms"}},
      [](const MetricContext& context) -> std::vector<MetricValue> {
        const std::optional<double> total = quantile(context.timings.total_ms(), 0.5);
        const std::optional<double> dense = context.timings.dense_attention_ms;
        if (!total || !dense || *total <= 0.0) return {MetricValue{}};
        return {{.value = *dense / *total}};
      }};
  return kMetric;
}

}  // namespace s2o
