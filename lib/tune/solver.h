// Which setting every head takes, so that the sum of errors stays within a budget at the least sum
// of costs. Knows nothing of attention: costs and errors are numbers that add up.
#pragma once

#include <cstddef>
#include <vector>

namespace s2o {

// One setting of a unit (a head of a layer); both >= 0.
struct TuneOption {
  double cost = 0.0;
  double error = 0.0;
};
using TuneUnit = std::vector<TuneOption>;  // at least one

struct TuneSolution {
  std::vector<std::size_t> choice;  // [units], of each unit's options
  double cost = 0.0;
  double error = 0.0;
  // What the last unit of error was worth: the common slope of cost over error at which all units
  // stop, the Lagrange multiplier. 0 where the cheapest options already meet the budget.
  double price = 0.0;
  bool meets_budget = true;  // else: the least error there is
};

// Equal marginal gain: every unit starts at its cheapest option and walks along the lower convex
// hull of its (error, cost) points; the step that buys the most error for its cost is taken first,
// over all units, until the budget is met. That is optimal but for the last step; what it leaves of
// the budget is then spent on single units, also on options above their hull.
TuneSolution solve_budget(const std::vector<TuneUnit>& units, double max_error);

}  // namespace s2o
