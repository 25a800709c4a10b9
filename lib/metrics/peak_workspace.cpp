// Memory of a method beyond Q, K, V, output and lse: the arrays of its plan and what the backend
// reports on top.
#include "lib/metrics/metric.h"

namespace s2o {
namespace {

class PeakWorkspace final : public Metric {
 public:
  const std::vector<MetricColumn>& columns() const override {
    static const std::vector<MetricColumn> kColumns = {
        {.name = "peak_workspace_bytes",
         .unit = "bytes",
         .help = "plan and kernel workspace beyond inputs and outputs",
         .in_text_table = false}};
    return kColumns;
  }

  std::vector<MetricValue> compute(const MetricContext& context) const override {
    return {{.value = static_cast<double>(context.workspace_bytes)}};
  }
};

}  // namespace

const Metric& metric_peak_workspace() {
  static const PeakWorkspace kMetric;
  return kMetric;
}

}  // namespace s2o
