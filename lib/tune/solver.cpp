#include "lib/tune/solver.h"

#include <algorithm>
#include <limits>
#include <numeric>
#include <queue>

namespace s2o {
namespace {

// The lower hull from the cheapest option to the one of least error: slopes of cost over error
// fall from step to step in what they buy.
std::vector<std::size_t> lower_hull(const TuneUnit& unit) {
  std::vector<std::size_t> order(unit.size());
  std::iota(order.begin(), order.end(), std::size_t{0});
  std::sort(order.begin(), order.end(), [&unit](std::size_t a, std::size_t b) {
    if (unit[a].cost != unit[b].cost) return unit[a].cost < unit[b].cost;
    return unit[a].error != unit[b].error ? unit[a].error < unit[b].error : a < b;
  });
  const auto gain = [&unit](std::size_t from, std::size_t to) {
    return (unit[from].error - unit[to].error) / (unit[to].cost - unit[from].cost);
  };
  std::vector<std::size_t> hull;
  for (const std::size_t next : order) {
    if (!hull.empty() && unit[next].error >= unit[hull.back()].error) continue;
    while (hull.size() > 1 && gain(hull[hull.size() - 2], hull.back()) <= gain(hull.back(), next)) {
      hull.pop_back();
    }
    hull.push_back(next);
  }
  return hull;
}

// Takes, as long as there is one, the change of a single unit that saves most within the budget.
void spend_rest(const std::vector<TuneUnit>& units, double max_error, TuneSolution& solution) {
  for (;;) {
    std::size_t best_unit = units.size();
    std::size_t best_option = 0;
    double best_saving = 0.0;
    for (std::size_t u = 0; u < units.size(); ++u) {
      const TuneOption& now = units[u][solution.choice[u]];
      for (std::size_t i = 0; i < units[u].size(); ++i) {
        const TuneOption& other = units[u][i];
        const double saving = now.cost - other.cost;
        if (saving <= best_saving) continue;
        if (solution.error - now.error + other.error > max_error) continue;
        best_unit = u;
        best_option = i;
        best_saving = saving;
      }
    }
    if (best_unit == units.size()) return;
    const TuneOption& now = units[best_unit][solution.choice[best_unit]];
    solution.error += units[best_unit][best_option].error - now.error;
    solution.cost -= best_saving;
    solution.choice[best_unit] = best_option;
  }
}

}  // namespace

TuneSolution solve_budget(const std::vector<TuneUnit>& units, double max_error) {
  struct Step {
    double gain = 0.0;  // error bought per cost
    std::size_t unit = 0;
    std::size_t place = 0;  // on the hull, before the step
    bool operator<(const Step& other) const {
      return gain != other.gain ? gain < other.gain : unit > other.unit;
    }
  };
  TuneSolution solution;
  std::vector<std::vector<std::size_t>> hulls;
  std::priority_queue<Step> steps;
  const auto offer = [&](std::size_t u, std::size_t place) {
    const std::vector<std::size_t>& hull = hulls[u];
    if (place + 1 == hull.size()) return;
    const TuneOption& from = units[u][hull[place]];
    const TuneOption& to = units[u][hull[place + 1]];
    steps.push({(from.error - to.error) / (to.cost - from.cost), u, place});
  };
  for (std::size_t u = 0; u < units.size(); ++u) {
    hulls.push_back(lower_hull(units[u]));
    solution.choice.push_back(hulls[u].front());
    solution.cost += units[u][hulls[u].front()].cost;
    solution.error += units[u][hulls[u].front()].error;
    offer(u, 0);
  }
  while (solution.error > max_error && !steps.empty()) {
    const Step step = steps.top();
    steps.pop();
    const TuneUnit& unit = units[step.unit];
    const std::size_t from = hulls[step.unit][step.place];
    const std::size_t to = hulls[step.unit][step.place + 1];
    solution.choice[step.unit] = to;
    solution.cost += unit[to].cost - unit[from].cost;
    solution.error += unit[to].error - unit[from].error;
    solution.price = 1.0 / step.gain;
    offer(step.unit, step.place + 1);
  }
  // Sums of many steps carry their rounding.
  solution.error = 0.0;
  for (std::size_t u = 0; u < units.size(); ++u) {
    solution.error += units[u][solution.choice[u]].error;
  }
  solution.meets_budget = solution.error <= max_error;
  if (solution.meets_budget) spend_rest(units, max_error, solution);
  solution.cost = 0.0;
  solution.error = 0.0;
  for (std::size_t u = 0; u < units.size(); ++u) {
    solution.cost += units[u][solution.choice[u]].cost;
    solution.error += units[u][solution.choice[u]].error;
  }
  return solution;
}

}  // namespace s2o
