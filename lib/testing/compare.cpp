#include "lib/testing/compare.h"

#include <cmath>
#include <limits>

namespace s2o::testing {

KernelResult reference_result(const AttentionInput& input, const SparsePlan& plan) {
  const auto rows = static_cast<std::size_t>(input.problem.seqlen * input.problem.num_q_heads);
  std::vector<double> out(input.q.size());
  std::vector<double> lse(rows);
  KernelResult result;
  result.stats.resize(plan.passes.size() * static_cast<std::size_t>(plan.num_tiles()));
  attention_ref(input.problem, PlanPointers(plan).view(), input.q.data(), input.k.data(),
                input.v.data(), out.data(), lse.data(), result.stats.data());
  result.out.assign(out.begin(), out.end());
  result.lse.assign(lse.begin(), lse.end());
  return result;
}

Comparison compare(const AttentionInput& input, const KernelResult& actual,
                   const KernelResult& expected) {
  Comparison result;
  double difference = 0.0;
  double norm = 0.0;
  double worst = -1.0;
  const auto d = static_cast<std::size_t>(input.problem.head_dim);
  for (std::size_t i = 0; i < expected.out.size(); ++i) {
    const double delta = static_cast<double>(actual.out[i]) - static_cast<double>(expected.out[i]);
    difference += delta * delta;
    norm += static_cast<double>(expected.out[i]) * static_cast<double>(expected.out[i]);
    if (!std::isnan(worst) && !(std::abs(delta) <= worst)) {
      worst = std::abs(delta);
      const std::size_t row = i / d;
      const auto seqlen = static_cast<std::size_t>(input.problem.seqlen);
      result.worst = "head " + std::to_string(row / seqlen) + " row " +
                     std::to_string(row % seqlen) + " column " + std::to_string(i % d) + ": " +
                     std::to_string(actual.out[i]) + ", expected " +
                     std::to_string(expected.out[i]);
    }
  }
  result.out_relative_l2 = norm > 0.0 ? std::sqrt(difference / norm) : std::sqrt(difference);
  const float minus_infinity = -std::numeric_limits<float>::infinity();
  for (std::size_t i = 0; i < expected.lse.size(); ++i) {
    const bool empty = expected.lse[i] == minus_infinity;
    if (empty != (actual.lse[i] == minus_infinity)) ++result.empty_mismatches;
    if (empty) continue;
    const double error =
        std::abs(static_cast<double>(actual.lse[i]) - static_cast<double>(expected.lse[i]));
    if (!(error <= result.lse_max_error)) result.lse_max_error = error;
  }
  for (std::size_t i = 0; i < expected.stats.size(); ++i) {
    const TileStats& a = actual.stats[i];
    const TileStats& e = expected.stats[i];
    if (a.stop_steps != e.stop_steps) {
      ++result.stop_mismatches;
    } else if (a.total_steps != e.total_steps || a.pv_skipped != e.pv_skipped ||
               a.fold_columns != e.fold_columns) {
      ++result.stat_mismatches;
    }
  }
  return result;
}

}  // namespace s2o::testing
