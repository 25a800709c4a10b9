#include "lib/tune/solver.h"

#include <gtest/gtest.h>

#include <functional>

#include "lib/core/random.h"

namespace s2o {
namespace {

using Choices = std::vector<std::vector<std::size_t>>;

// Each unit for itself.
std::vector<TuneChain> apart(const std::vector<TuneUnit>& units) {
  std::vector<TuneChain> chains;
  for (const TuneUnit& unit : units) chains.push_back({.units = {unit}});
  return chains;
}

// The least cost of one chain within the budget, by trying everything.
double least_cost(const TuneChain& chain, double max_error) {
  double best = 1e300;
  std::vector<std::size_t> choice;
  const std::function<void(double, double)> visit = [&](double cost, double error) {
    if (error > max_error || cost >= best) return;
    if (choice.size() == chain.units.size()) {
      best = cost;
      return;
    }
    const TuneUnit& unit = chain.units[choice.size()];
    for (std::size_t i = 0; i < unit.size(); ++i) {
      const bool joins =
          choice.empty() ||
          (chain.kinds.empty() ? choice.back() == i : chain.kinds[choice.back()] == chain.kinds[i]);
      const double start = joins ? 0.0 : chain.starts[i];
      choice.push_back(i);
      visit(cost + start + unit[i].cost, error + unit[i].error);
      choice.pop_back();
    }
  };
  visit(0.0, 0.0);
  return best;
}

TEST(solver, a_budget_that_all_can_meet_takes_the_cheapest) {
  const TuneSolution solution = solve_budget(apart({{{3, 0}, {1, 0.2}}, {{5, 0}, {2, 0.3}}}), 0.5);
  EXPECT_EQ(solution.choice, (Choices{{1}, {1}}));
  EXPECT_EQ(solution.cost, 3.0);
  EXPECT_EQ(solution.price, 0.0);
  EXPECT_TRUE(solution.meets_budget);
}

TEST(solver, no_budget_takes_what_errs_least) {
  const TuneSolution solution = solve_budget(apart({{{3, 0}, {1, 0.2}}, {{5, 0}, {2, 0.3}}}), 0.0);
  EXPECT_EQ(solution.choice, (Choices{{0}, {0}}));
  EXPECT_TRUE(solution.meets_budget);
}

TEST(solver, a_budget_that_nothing_meets_is_said_so) {
  const TuneSolution solution = solve_budget(apart({TuneUnit{{3, 0.1}, {1, 0.2}}}), 0.05);
  EXPECT_EQ(solution.choice, (Choices{{0}}));
  EXPECT_FALSE(solution.meets_budget);
}

TEST(solver, the_unit_that_saves_most_for_its_error_goes_first) {
  // Both lose 0.2; the second saves more.
  const TuneSolution solution = solve_budget(apart({{{3, 0}, {1, 0.2}}, {{9, 0}, {2, 0.2}}}), 0.2);
  EXPECT_EQ(solution.choice, (Choices{{0}, {1}}));
  EXPECT_EQ(solution.error, 0.2);
}

TEST(solver, options_that_cost_more_and_err_more_are_never_taken) {
  const TuneUnit unit = {{4, 0}, {5, 0.1}, {4, 0.1}, {2, 0.3}};
  EXPECT_EQ(solve_budget(apart({unit}), 0.15).choice, (Choices{{0}}));
}

TEST(solver, what_is_left_of_the_budget_is_spent_above_the_hull) {
  // The hull goes from cost 1 to cost 10 at once; cost 8 lies above it and fits.
  const TuneUnit unit = {{10, 0}, {8, 0.1}, {1, 0.5}};
  EXPECT_EQ(solve_budget(apart({unit}), 0.2).choice, (Choices{{1}}));
}

TEST(solver, neighbours_run_together_where_a_run_of_their_own_does_not_pay) {
  // The middle unit would save 1 by the other option.
  TuneChain chain = {.units = {{{5, 0}, {9, 0}}, {{5, 0}, {4, 0}}, {{5, 0}, {9, 0}}},
                     .starts = {1.0, 1.0}};
  EXPECT_EQ(solve_budget({chain}, 0.0).choice, (Choices{{0, 0, 0}}));
  chain.starts = {0.25, 0.25};
  const TuneSolution solution = solve_budget({chain}, 0.0);
  EXPECT_EQ(solution.choice, (Choices{{0, 1, 0}}));
  EXPECT_EQ(solution.cost, 14.5);
}

TEST(solver, options_of_one_kind_run_together) {
  const TuneChain chain = {.units = {{{5, 0}, {9, 0}}, {{5, 0}, {4, 0}}, {{5, 0}, {9, 0}}},
                           .starts = {1.0, 1.0},
                           .kinds = {0, 0}};
  const TuneSolution solution = solve_budget({chain}, 0.0);
  EXPECT_EQ(solution.choice, (Choices{{0, 1, 0}}));
  EXPECT_EQ(solution.cost, 14.0);
}

// Costs and errors in (0, 1) beside a first option without error; starts and kinds of neighbours.
TuneChain random_chain(std::uint64_t seed, int units, int options) {
  const CounterRandom random(seed, /*stream=*/0);
  std::uint64_t next = 0;
  TuneChain chain{.units = std::vector<TuneUnit>(static_cast<std::size_t>(units))};
  for (TuneUnit& unit : chain.units) {
    unit.push_back({1.0 + random.uniform(next++), 0.0});
    for (int i = 1; i < options; ++i) {
      unit.push_back({random.uniform(next++), random.uniform(next++)});
    }
  }
  for (int i = 0; i < options; ++i) chain.starts.push_back(0.3 * random.uniform(next++));
  if (seed % 2 == 1) {
    for (int i = 0; i < options; ++i) chain.kinds.push_back(i % 3);
  }
  return chain;
}

TEST(solver, random_chains_come_close_to_the_best_there_is) {
  for (std::uint64_t seed = 0; seed < 50; ++seed) {
    const TuneChain chain = random_chain(seed, 6, 5);
    for (double budget = 0.25; budget < 3.0; budget += 0.5) {
      const TuneSolution solution = solve_budget({chain}, budget);
      EXPECT_TRUE(solution.meets_budget);
      EXPECT_LE(solution.error, budget + 1e-12);
      const double best = least_cost(chain, budget);
      EXPECT_GE(solution.cost, best - 1e-9);
      // Within what the last step of one chain costs.
      EXPECT_LE(solution.cost, best + 2.0) << "seed " << seed << ", budget " << budget;
    }
  }
}

TEST(solver, what_is_best_at_a_price_is_found) {
  for (std::uint64_t seed = 0; seed < 60; ++seed) {
    const TuneChain chain = random_chain(seed, 5, 6);
    for (const double price : {0.0, 0.3, 1.0, 3.0}) {
      // The best choice at that price, by trying everything.
      TuneChain priced = chain;
      for (TuneUnit& unit : priced.units) {
        for (TuneOption& option : unit) option.cost += price * option.error;
      }
      const double least = least_cost(priced, 1e300);
      // A budget that the solver meets at that price: what it errs there.
      const TuneSolution at_price = solve_budget({priced}, 1e300);
      EXPECT_NEAR(at_price.cost, least, 1e-12);
      const TuneSolution solution = solve_budget({chain}, at_price.error + 1e-12);
      EXPECT_NEAR(solution.cost, least - price * at_price.error, 1e-9)
          << "seed " << seed << ", price " << price;
    }
  }
}

TEST(solver, work_grows_with_the_options_and_not_with_their_square) {
  constexpr int kUnits = 8;
  constexpr int kOptions = 4096;  // as many as `s2o tune` takes
  for (const std::uint64_t seed : {0u, 1u}) {
    const TuneChain chain = random_chain(seed, kUnits, kOptions);
    std::size_t visits = 0;
    EXPECT_TRUE(solve_budget({chain}, 0.1, &visits).meets_budget);
    // Three for each option at each price, and some changes of single units.
    EXPECT_LE(visits, std::size_t{400} * kUnits * kOptions);
  }
}

}  // namespace
}  // namespace s2o
