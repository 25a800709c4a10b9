#include "lib/tune/solver.h"

#include <gtest/gtest.h>

#include <functional>

#include "lib/core/random.h"

namespace s2o {
namespace {

// The least cost within the budget, by trying everything.
double least_cost(const std::vector<TuneUnit>& units, double max_error) {
  double best = 1e300;
  const std::function<void(std::size_t, double, double)> visit = [&](std::size_t u, double cost,
                                                                     double error) {
    if (error > max_error || cost >= best) return;
    if (u == units.size()) {
      best = cost;
      return;
    }
    for (const TuneOption& option : units[u])
      visit(u + 1, cost + option.cost, error + option.error);
  };
  visit(0, 0.0, 0.0);
  return best;
}

TEST(solver, a_budget_that_all_can_meet_takes_the_cheapest) {
  const TuneSolution solution = solve_budget({{{3, 0}, {1, 0.2}}, {{5, 0}, {2, 0.3}}}, 0.5);
  EXPECT_EQ(solution.choice, (std::vector<std::size_t>{1, 1}));
  EXPECT_EQ(solution.cost, 3.0);
  EXPECT_EQ(solution.price, 0.0);
  EXPECT_TRUE(solution.meets_budget);
}

TEST(solver, no_budget_takes_what_errs_least) {
  const TuneSolution solution = solve_budget({{{3, 0}, {1, 0.2}}, {{5, 0}, {2, 0.3}}}, 0.0);
  EXPECT_EQ(solution.choice, (std::vector<std::size_t>{0, 0}));
  EXPECT_TRUE(solution.meets_budget);
}

TEST(solver, a_budget_that_nothing_meets_is_said_so) {
  const TuneSolution solution = solve_budget({{{3, 0.1}, {1, 0.2}}}, 0.05);
  EXPECT_EQ(solution.choice, (std::vector<std::size_t>{0}));
  EXPECT_FALSE(solution.meets_budget);
}

TEST(solver, the_unit_that_saves_most_for_its_error_goes_first) {
  // Both lose 0.2; the second saves more.
  const TuneSolution solution = solve_budget({{{3, 0}, {1, 0.2}}, {{9, 0}, {2, 0.2}}}, 0.2);
  EXPECT_EQ(solution.choice, (std::vector<std::size_t>{0, 1}));
  EXPECT_EQ(solution.error, 0.2);
}

TEST(solver, options_that_cost_more_and_err_more_are_never_taken) {
  const TuneSolution solution = solve_budget({{{4, 0}, {5, 0.1}, {4, 0.1}, {2, 0.3}}}, 0.15);
  EXPECT_EQ(solution.choice, (std::vector<std::size_t>{0}));
}

TEST(solver, what_is_left_of_the_budget_is_spent_above_the_hull) {
  // The hull goes from cost 1 to cost 10 at once; cost 8 lies above it and fits.
  const TuneSolution solution = solve_budget({{{10, 0}, {8, 0.1}, {1, 0.5}}}, 0.2);
  EXPECT_EQ(solution.choice, (std::vector<std::size_t>{1}));
}

TEST(solver, random_units_come_close_to_the_best_there_is) {
  for (std::uint64_t seed = 0; seed < 50; ++seed) {
    const CounterRandom random(seed, /*stream=*/0);
    std::uint64_t next = 0;
    std::vector<TuneUnit> units(6);
    for (TuneUnit& unit : units) {
      unit.push_back({1.0 + random.uniform(next++), 0.0});
      for (int i = 0; i < 4; ++i) unit.push_back({random.uniform(next++), random.uniform(next++)});
    }
    double best_error = 0.0;
    for (double budget = 0.25; budget < 3.0; budget += 0.5) {
      const TuneSolution solution = solve_budget(units, budget);
      EXPECT_TRUE(solution.meets_budget);
      EXPECT_LE(solution.error, budget + 1e-12);
      const double best = least_cost(units, budget);
      EXPECT_GE(solution.cost, best - 1e-12);
      // Within the last step of one unit.
      EXPECT_LE(solution.cost, best + 2.0) << "seed " << seed << ", budget " << budget;
      best_error = solution.error;
    }
    EXPECT_GT(best_error, 0.0);
  }
}

}  // namespace
}  // namespace s2o
