// The part of the dense softmax that the visited keys hold: exp(lse - lse_dense), the mean over
// rows. A row that visits no key (lse = -infinity) holds nothing. Compensated methods count what
// stands in for unvisited keys as visited, so their value may exceed 1.
//
// fp32 holds an lse of 2^14 to 2^-10, and sums of products in another order differ by a few such
// steps: from there on the difference of two lse says nothing about the mass, which is not measured
// then.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <limits>

#include "kernels/common/parallel.h"
#include "lib/metrics/mean_mass.h"
#include "lib/metrics/metric.h"

namespace s2o {
namespace {

constexpr double kMaxLse = 0x1p14;

}  // namespace

const Metric& metric_mass_recall() {
  static const Metric kMetric = {
      {{.name = "mass_recall",
        .help = "mean over rows of the softmax mass of the visited keys, exp(lse - lse_dense)",
        .per_head = true}},
      [](const MetricContext& context) -> std::vector<MetricValue> {
        const Problem& problem = context.input.problem;
        MetricValue recall;
        recall.per_head.resize(static_cast<std::size_t>(problem.num_q_heads));
        std::vector<double> largest_lse(recall.per_head.size());  // |lse|, dense
        parallel_for(problem.num_q_heads, [&](std::int64_t head) {
          const float* lse = context.lse.data() + head * problem.seqlen;
          const float* dense = context.reference.lse.data() + head * problem.seqlen;
          double largest = 0.0;
          for (std::int64_t i = 0; i < problem.seqlen; ++i) {
            largest = std::max(largest, std::abs(static_cast<double>(dense[i])));
          }
          const auto index = static_cast<std::size_t>(head);
          largest_lse[index] = largest;
          recall.per_head[index] = largest <= kMaxLse ? mean_mass(lse, dense, problem.seqlen)
                                                      : std::numeric_limits<double>::quiet_NaN();
        });
        const auto largest = std::max_element(largest_lse.begin(), largest_lse.end());
        if (*largest > kMaxLse) {
          recall.reason = fmt::format(
              "the lse of head {} reaches {:.3g}, beyond {:.0f} fp32 is too coarse for its "
              "exponential",
              largest - largest_lse.begin(), *largest, kMaxLse);
          return {recall};
        }
        double sum = 0.0;
        for (const double value : recall.per_head) sum += value;
        recall.value = sum / problem.num_q_heads;
        return {recall};
      }};
  return kMetric;
}

}  // namespace s2o
