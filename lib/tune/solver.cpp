#include "lib/tune/solver.h"

#include <algorithm>
#include <map>

namespace s2o {
namespace {

using Choice = std::vector<std::size_t>;

// A chain with its kinds numbered from 0.
struct Chain {
  explicit Chain(const TuneChain& chain) : given(chain) {
    const std::size_t options = chain.units.front().size();
    std::map<int, std::size_t> numbers;
    for (std::size_t i = 0; i < options; ++i) {
      const int named = chain.kinds.empty() ? static_cast<int>(i) : chain.kinds[i];
      kind.push_back(numbers.try_emplace(named, numbers.size()).first->second);
    }
    num_kinds = numbers.size();
  }

  const std::vector<TuneUnit>& units() const { return given.units; }
  double start(std::size_t option) const {
    return given.starts.empty() ? 0.0 : given.starts[option];
  }
  // What the unit with option b adds to the cost of its own because it comes after one with a.
  double start_after(std::size_t a, std::size_t b) const {
    return kind[a] == kind[b] ? 0.0 : start(b);
  }

  const TuneChain& given;
  std::vector<std::size_t> kind;  // [options]
  std::size_t num_kinds = 0;
};

// Cost and error of a chain.
TuneOption total_of(const Chain& chain, const Choice& choice) {
  TuneOption total;
  for (std::size_t u = 0; u < choice.size(); ++u) {
    const TuneOption& option = chain.units()[u][choice[u]];
    total.cost += option.cost;
    total.error += option.error;
    if (u > 0) total.cost += chain.start_after(choice[u - 1], choice[u]);
  }
  return total;
}

struct Best {
  double value = 0.0;  // of the units so far, the last with this option
  double error = 0.0;
  std::size_t before = 0;  // option of the unit before
  bool operator<(const Best& other) const {
    return value != other.value ? value < other.value : error < other.error;
  }
};

// Where a unit of each option is best reached from. A run goes on from the least of its kind; a new
// one starts from the least of all, because what it costs to start is its own option's.
std::vector<Best> reached_from(const Chain& chain, const std::vector<Best>& last,
                               std::size_t& visits) {
  const std::size_t none = last.size();
  std::size_t least = 0;
  std::vector<std::size_t> least_of_kind(chain.num_kinds, none);
  for (std::size_t i = 0; i < last.size(); ++i, ++visits) {
    if (last[i] < last[least]) least = i;
    std::size_t& of_kind = least_of_kind[chain.kind[i]];
    if (of_kind == none || last[i] < last[of_kind]) of_kind = i;
  }
  std::vector<Best> row(last.size());
  for (std::size_t i = 0; i < last.size(); ++i, ++visits) {
    // Of equal ones, the option itself, then the first.
    std::size_t before = least_of_kind[chain.kind[i]];
    if (!(last[before] < last[i])) before = i;
    row[i] = {.value = last[before].value, .error = last[before].error, .before = before};
    if (chain.kind[least] == chain.kind[i]) continue;
    const Best fresh = {
        .value = last[least].value + chain.start(i), .error = last[least].error, .before = least};
    const bool first_of_equal = before != i && least < before && !(row[i] < fresh);
    if (fresh < row[i] || first_of_equal) row[i] = fresh;
  }
  return row;
}

// The choice of least cost + price * error; of equal ones that of less error.
Choice cheapest_at(const Chain& chain, double price, std::size_t& visits) {
  std::vector<std::vector<Best>> table;
  for (const TuneUnit& unit : chain.units()) {
    std::vector<Best> row =
        table.empty() ? std::vector<Best>(unit.size()) : reached_from(chain, table.back(), visits);
    for (std::size_t i = 0; i < unit.size(); ++i, ++visits) {
      row[i].value += unit[i].cost + price * unit[i].error;
      row[i].error += unit[i].error;
    }
    table.push_back(std::move(row));
  }
  Choice choice(table.size());
  std::size_t option = static_cast<std::size_t>(
      std::min_element(table.back().begin(), table.back().end()) - table.back().begin());
  for (std::size_t u = choice.size(); u-- > 0;) {
    choice[u] = option;
    option = table[u][option].before;
  }
  return choice;
}

TuneSolution solution_at(const std::vector<Chain>& chains, double price, std::size_t& visits) {
  TuneSolution solution{.price = price};
  for (const Chain& chain : chains) {
    solution.choice.push_back(cheapest_at(chain, price, visits));
    const TuneOption total = total_of(chain, solution.choice.back());
    solution.cost += total.cost;
    solution.error += total.error;
  }
  return solution;
}

// What changes when unit u takes `option`, all others as in `choice`.
TuneOption change_of(const Chain& chain, const Choice& choice, std::size_t u, std::size_t option) {
  const auto with = [&](std::size_t taken) {
    TuneOption part = chain.units()[u][taken];
    if (u > 0) part.cost += chain.start_after(choice[u - 1], taken);
    if (u + 1 < choice.size()) part.cost += chain.start_after(taken, choice[u + 1]);
    return part;
  };
  const TuneOption now = with(choice[u]);
  const TuneOption then = with(option);
  return {.cost = then.cost - now.cost, .error = then.error - now.error};
}

// Takes, as long as there is one, the change of a single unit that saves most within the budget.
void spend_rest(const std::vector<Chain>& chains, double max_error, TuneSolution& solution,
                std::size_t& visits) {
  for (;;) {
    std::size_t* best_taken = nullptr;
    std::size_t best_option = 0;
    TuneOption best_change;
    for (std::size_t c = 0; c < chains.size(); ++c) {
      Choice& choice = solution.choice[c];
      for (std::size_t u = 0; u < choice.size(); ++u) {
        for (std::size_t i = 0; i < chains[c].units()[u].size(); ++i, ++visits) {
          const TuneOption change = change_of(chains[c], choice, u, i);
          if (change.cost >= best_change.cost || solution.error + change.error > max_error)
            continue;
          best_taken = &choice[u];
          best_option = i;
          best_change = change;
        }
      }
    }
    // Changes as small as rounding could go on for ever.
    if (best_taken == nullptr || -best_change.cost < 1e-9 * solution.cost) return;
    *best_taken = best_option;
    solution.cost += best_change.cost;
    solution.error += best_change.error;
  }
}

}  // namespace

TuneSolution solve_budget(const std::vector<TuneChain>& given, double max_error,
                          std::size_t* num_visits) {
  const std::vector<Chain> chains(given.begin(), given.end());
  std::size_t counted = 0;
  std::size_t& visits = num_visits != nullptr ? *num_visits : counted;
  TuneSolution low = solution_at(chains, 0.0, visits);
  if (low.error <= max_error) return low;
  // A price at which no cost counts any more, for any sizes of costs and errors.
  double high_price = 1.0;
  TuneSolution high = solution_at(chains, high_price, visits);
  for (int i = 0; i < 200 && high.error > max_error; ++i) {
    high_price *= 4.0;
    high = solution_at(chains, high_price, visits);
  }
  high.meets_budget = high.error <= max_error;
  if (!high.meets_budget) return high;
  double low_price = 0.0;
  for (int i = 0; i < 100 && high_price - low_price > 1e-12 * high_price; ++i) {
    const double price = 0.5 * (low_price + high_price);
    TuneSolution middle = solution_at(chains, price, visits);
    if (middle.error <= max_error) {
      high_price = price;
      high = std::move(middle);
    } else {
      low_price = price;
    }
  }
  spend_rest(chains, max_error, high, visits);
  return high;
}

}  // namespace s2o
