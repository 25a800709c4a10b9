// What was computed, from the one definition of work in lib/plan/work.h.
#include "lib/metrics/metric.h"

namespace s2o {

const Metric& metric_work() {
  static const Metric kMetric = {
      {
          {.name = "sparsity", .help = "1 - compute_density", .in_text_table = false},
          {.name = "compute_density",
           .help =
               "query-key pairs of all tiles executed / those of a dense causal kernel with the "
               "same tile shape",
           .per_head = true},
          {.name = "pair_density",
           .help = "unmasked causal pairs executed / causal pairs",
           .in_text_table = false},
      },
      [](const MetricContext& context) -> std::vector<MetricValue> {
        const WorkCounts& total = context.work.total;
        MetricValue density = {.value = total.compute_density()};
        for (const WorkCounts& head : context.work.per_head) {
          density.per_head.push_back(head.compute_density());
        }
        return {{.value = 1.0 - total.compute_density()}, density, {.value = total.pair_density()}};
      }};
  return kMetric;
}

}  // namespace s2o
