// What planning on the device must at least compute and move, as its planner states it
// (lib/planning/planner.h): to be set against plan_latency_ms.
#include "lib/metrics/metric.h"

namespace s2o {

const Metric& metric_planning_cost() {
  static const Metric kMetric = {
      {{.name = "plan_flops",
        .unit = "FLOP",
        .help = "arithmetic of planning, products and sums of the method's definition",
        .in_text_table = false},
       {.name = "plan_bytes",
        .unit = "bytes",
        .help = "device memory that planning reads and writes, each array once per use",
        .in_text_table = false}},
      [](const MetricContext& context) -> std::vector<MetricValue> {
        if (!context.planning_cost) return {MetricValue{}, MetricValue{}};
        return {{.value = context.planning_cost->flops}, {.value = context.planning_cost->bytes}};
      }};
  return kMetric;
}

}  // namespace s2o
