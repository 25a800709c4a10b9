#include "lib/report/cost_at_error.h"

#include <algorithm>
#include <cmath>

namespace s2o {
namespace {

double between(double a, double b, double weight) {
  return std::exp((1.0 - weight) * std::log(a) + weight * std::log(b));
}

// Where the segment from `a` to `b` errs exactly `target`; empty where it does not cross it.
std::optional<CostAtError> crossing(const CostPoint& a, const CostPoint& b, double target) {
  const auto [low, high] = std::minmax(a.error, b.error);
  if (low <= 0.0 || low > target || high <= target) return std::nullopt;
  const double weight = std::log(target / a.error) / std::log(b.error / a.error);
  CostAtError at{.cost = between(a.cost, b.cost, weight)};
  at.other = a.other > 0.0 && b.other > 0.0 ? between(a.other, b.other, weight) : 0.0;
  return at;
}

}  // namespace

std::optional<CostAtError> cost_at_error(std::vector<CostPoint> curve, double target) {
  std::erase_if(curve, [](const CostPoint& point) {
    return !std::isfinite(point.error) || !std::isfinite(point.cost) || point.cost <= 0.0;
  });
  std::sort(curve.begin(), curve.end(),
            [](const CostPoint& a, const CostPoint& b) { return a.knob < b.knob; });
  std::optional<CostAtError> best;
  const auto consider = [&best](const CostAtError& at) {
    if (!best || at.cost < best->cost) best = at;
  };
  for (std::size_t i = 0; i < curve.size(); ++i) {
    if (curve[i].error <= target) consider({curve[i].cost, curve[i].other});
    if (i == 0) continue;
    if (const auto at = crossing(curve[i - 1], curve[i], target)) consider(*at);
  }
  return best;
}

}  // namespace s2o
