// The part of the dense softmax that the visited keys hold: exp(lse - lse_dense), the mean over
// rows. A row that visits no key (lse = -infinity) holds nothing. Compensated methods count what
// stands in for unvisited keys as visited, so their value may exceed 1.
#include <cmath>
#include <cstddef>

#include "kernels/common/parallel.h"
#include "lib/metrics/metric.h"

namespace s2o {
namespace {

class MassRecall final : public Metric {
 public:
  const std::vector<MetricColumn>& columns() const override {
    static const std::vector<MetricColumn> kColumns = {
        {.name = "mass_recall",
         .help = "mean over rows of the softmax mass of the visited keys, exp(lse - lse_dense)",
         .per_head = true}};
    return kColumns;
  }

  std::vector<MetricValue> compute(const MetricContext& context) const override {
    const Problem& problem = context.input.problem;
    MetricValue recall;
    recall.per_head.resize(static_cast<std::size_t>(problem.num_q_heads));
    parallel_for(problem.num_q_heads, [&](std::int64_t head) {
      const float* lse = context.lse.data() + head * problem.seqlen;
      const float* dense = context.reference.lse.data() + head * problem.seqlen;
      double mass = 0.0;
      for (std::int64_t i = 0; i < problem.seqlen; ++i) {
        mass += std::exp(static_cast<double>(lse[i]) - static_cast<double>(dense[i]));
      }
      recall.per_head[static_cast<std::size_t>(head)] = mass / static_cast<double>(problem.seqlen);
    });
    double sum = 0.0;
    for (const double value : recall.per_head) sum += value;
    recall.value = sum / problem.num_q_heads;
    return {recall};
  }
};

}  // namespace

const Metric& metric_mass_recall() {
  static const MassRecall kMetric;
  return kMetric;
}

}  // namespace s2o
