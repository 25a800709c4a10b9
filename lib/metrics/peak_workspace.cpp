// Memory of a method beyond Q, K, V, output and lse: the arrays of its plan and what the backend
// reports on top.
#include "lib/metrics/metric.h"

namespace s2o {

const Metric& metric_peak_workspace() {
  static const Metric kMetric = {{{.name = "peak_workspace_bytes",
                                   .unit = "bytes",
                                   .help = "plan and kernel workspace beyond inputs and outputs",
                                   .in_text_table = false}},
                                 [](const MetricContext& context) -> std::vector<MetricValue> {
                                   return {{.value = static_cast<double>(context.workspace_bytes)}};
                                 }};
  return kMetric;
}

}  // namespace s2o
