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

// Units in a row, each with the same number of options. Neighbours with options of one kind run
// together: every run after the first costs starts[its first option] beside the costs of its units.
struct TuneChain {
  std::vector<TuneUnit> units;
  std::vector<double> starts;   // [options]; empty: nothing
  std::vector<int> kinds = {};  // [options]; empty: each option is a kind of its own
};

struct TuneSolution {
  std::vector<std::vector<std::size_t>> choice;  // [chains][units], of each unit's options
  double cost = 0.0;
  double error = 0.0;
  // What the last error is worth: the common slope of cost over error at which all units stop, the
  // Lagrange multiplier. 0 where the cheapest choice already meets the budget.
  double price = 0.0;
  bool meets_budget = true;  // else: the least error there is
};

// Equal marginal gain: at a price of error, every chain takes what is cheapest with its error paid
// (exact, by dynamic programming along the chain); the price rises until the budget is met. No
// other choice with at most that error costs less. What is left of the budget, less than what the
// next chain would take, is then spent on single units. Takes time in proportion to units x
// options; `num_visits`, where asked for, grows by how often an option was looked at.
TuneSolution solve_budget(const std::vector<TuneChain>& chains, double max_error,
                          std::size_t* num_visits = nullptr);

}  // namespace s2o
