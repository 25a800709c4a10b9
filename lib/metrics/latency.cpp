// Medians over the repeats, and the spread of the total. The planning of an oracle is not timed:
// it looks at the dense result, so neither its plan nor its total latency means anything. A plan of
// the shape alone costs a layer nothing.
#include "lib/metrics/metric.h"

namespace s2o {

const Metric& metric_latency() {
  static const Metric kMetric = {
      {
          {.name = "plan_latency_ms", .unit = "ms", .help = "planning, median over the repeats"},
          {.name = "attention_latency_ms",
           .unit = "ms",
           .help = "attention over the plan, median over the repeats"},
          {.name = "total_latency_ms",
           .unit = "ms",
           .help = "planning and attention, median over the repeats",
           .in_text_table = false},
          {.name = "latency_p10_ms",
           .unit = "ms",
           .help = "10 % quantile of the total; null for a single repeat",
           .in_text_table = false},
          {.name = "latency_p90_ms",
           .unit = "ms",
           .help = "90 % quantile of the total; null for a single repeat",
           .in_text_table = false},
      },
      [](const MetricContext& context) -> std::vector<MetricValue> {
        const std::vector<double> total = context.timings.total_ms();
        const std::vector<double> spread = total.size() > 1 ? total : std::vector<double>{};
        return {{.value = quantile(context.timings.plan_ms, 0.5)},
                {.value = quantile(context.timings.attention_ms, 0.5)},
                {.value = quantile(total, 0.5)},
                {.value = quantile(spread, 0.1)},
                {.value = quantile(spread, 0.9)}};
      }};
  return kMetric;
}

}  // namespace s2o
