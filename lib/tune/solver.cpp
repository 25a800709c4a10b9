#include "lib/tune/solver.h"

#include <algorithm>
#include <limits>

namespace s2o {
namespace {

using Choice = std::vector<std::size_t>;

double start_of(const TuneChain& chain, std::size_t option) {
  return chain.starts.empty() ? 0.0 : chain.starts[option];
}

bool run_together(const TuneChain& chain, std::size_t a, std::size_t b) {
  return chain.kinds.empty() ? a == b : chain.kinds[a] == chain.kinds[b];
}

// Cost and error of a chain.
TuneOption total_of(const TuneChain& chain, const Choice& choice) {
  TuneOption total;
  for (std::size_t u = 0; u < chain.units.size(); ++u) {
    const TuneOption& option = chain.units[u][choice[u]];
    total.cost += option.cost;
    total.error += option.error;
    if (u > 0 && !run_together(chain, choice[u - 1], choice[u])) {
      total.cost += start_of(chain, choice[u]);
    }
  }
  return total;
}

// The choice of least cost + price * error; of equal ones that of less error.
Choice cheapest_at(const TuneChain& chain, double price) {
  struct Best {
    double value = 0.0;  // of the units so far, the last with this option
    double error = 0.0;
    std::size_t before = 0;  // option of the unit before
    bool operator<(const Best& other) const {
      return value != other.value ? value < other.value : error < other.error;
    }
  };
  const std::size_t options = chain.units.front().size();
  std::vector<std::vector<Best>> table;
  for (const TuneUnit& unit : chain.units) {
    std::vector<Best> row(options);
    for (std::size_t i = 0; i < options; ++i) {
      Best& best = row[i];
      for (std::size_t before = 0; !table.empty() && before < options; ++before) {
        const Best& last = table.back()[before];
        const double start = run_together(chain, before, i) ? 0.0 : start_of(chain, i);
        const Best next = {.value = last.value + start, .error = last.error, .before = before};
        // Of equal ones, a run that goes on.
        if (before == 0 || next < best || (before == i && !(best < next))) best = next;
      }
      best.value += unit[i].cost + price * unit[i].error;
      best.error += unit[i].error;
    }
    table.push_back(std::move(row));
  }
  Choice choice(chain.units.size());
  std::size_t option = static_cast<std::size_t>(
      std::min_element(table.back().begin(), table.back().end()) - table.back().begin());
  for (std::size_t u = choice.size(); u-- > 0;) {
    choice[u] = option;
    option = table[u][option].before;
  }
  return choice;
}

TuneSolution solution_at(const std::vector<TuneChain>& chains, double price) {
  TuneSolution solution{.price = price};
  for (const TuneChain& chain : chains) {
    solution.choice.push_back(cheapest_at(chain, price));
    const TuneOption total = total_of(chain, solution.choice.back());
    solution.cost += total.cost;
    solution.error += total.error;
  }
  return solution;
}

// Takes, as long as there is one, the change of a single unit that saves most within the budget.
void spend_rest(const std::vector<TuneChain>& chains, double max_error, TuneSolution& solution) {
  for (;;) {
    Choice* best_chain = nullptr;
    Choice best_choice;
    TuneOption best_change;
    for (std::size_t c = 0; c < chains.size(); ++c) {
      const TuneOption now = total_of(chains[c], solution.choice[c]);
      Choice choice = solution.choice[c];
      for (std::size_t u = 0; u < choice.size(); ++u) {
        for (choice[u] = 0; choice[u] < chains[c].units[u].size(); ++choice[u]) {
          const TuneOption total = total_of(chains[c], choice);
          const TuneOption change = {total.cost - now.cost, total.error - now.error};
          if (change.cost >= best_change.cost || solution.error + change.error > max_error)
            continue;
          best_chain = &solution.choice[c];
          best_choice = choice;
          best_change = change;
        }
        choice[u] = solution.choice[c][u];
      }
    }
    // Changes as small as rounding could go on for ever.
    if (best_chain == nullptr || -best_change.cost < 1e-9 * solution.cost) return;
    *best_chain = std::move(best_choice);
    solution.cost += best_change.cost;
    solution.error += best_change.error;
  }
}

}  // namespace

TuneSolution solve_budget(const std::vector<TuneChain>& chains, double max_error) {
  TuneSolution low = solution_at(chains, 0.0);
  if (low.error <= max_error) return low;
  // A price at which no cost counts any more, for any sizes of costs and errors.
  double high_price = 1.0;
  TuneSolution high = solution_at(chains, high_price);
  for (int i = 0; i < 200 && high.error > max_error; ++i) {
    high_price *= 4.0;
    high = solution_at(chains, high_price);
  }
  high.meets_budget = high.error <= max_error;
  if (!high.meets_budget) return high;
  double low_price = 0.0;
  for (int i = 0; i < 100 && high_price - low_price > 1e-12 * high_price; ++i) {
    const double price = 0.5 * (low_price + high_price);
    TuneSolution middle = solution_at(chains, price);
    if (middle.error <= max_error) {
      high_price = price;
      high = std::move(middle);
    } else {
      low_price = price;
    }
  }
  spend_rest(chains, max_error, high);
  return high;
}

}  // namespace s2o
