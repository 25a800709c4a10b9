#include <algorithm>
#include <cstddef>

#include "lib/metrics/metric.h"

namespace s2o {

#define S2O_METRIC(name) const Metric& metric_##name();
#include "lib/metrics/metrics.def"
#undef S2O_METRIC

const std::vector<const Metric*>& all_metrics() {
  static const std::vector<const Metric*> metrics = {
#define S2O_METRIC(name) &metric_##name(),
#include "lib/metrics/metrics.def"
#undef S2O_METRIC
  };
  return metrics;
}

const std::vector<MetricColumn>& metric_columns() {
  static const std::vector<MetricColumn> columns = [] {
    std::vector<MetricColumn> all;
    for (const Metric* metric : all_metrics()) {
      for (const MetricColumn& column : metric->columns) {
        if (column.is_column) all.push_back(column);
      }
    }
    return all;
  }();
  return columns;
}

std::vector<double> Timings::total_ms() const {
  if (plan_ms.empty()) return {};
  std::vector<double> total = attention_ms;
  const bool paired = plan_ms.size() == attention_ms.size();
  const double plan_median = *quantile(plan_ms, 0.5);
  for (std::size_t i = 0; i < total.size(); ++i) total[i] += paired ? plan_ms[i] : plan_median;
  return total;
}

std::optional<double> quantile(std::vector<double> samples, double q) {
  if (samples.empty()) return std::nullopt;
  std::sort(samples.begin(), samples.end());
  const double place = q * static_cast<double>(samples.size() - 1);
  const auto lower = static_cast<std::size_t>(place);
  const std::size_t upper = std::min(lower + 1, samples.size() - 1);
  const double fraction = place - static_cast<double>(lower);
  return samples[lower] + fraction * (samples[upper] - samples[lower]);
}

}  // namespace s2o
