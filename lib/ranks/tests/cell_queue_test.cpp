#include "lib/ranks/cell_queue.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <set>
#include <vector>

namespace s2o {
namespace {

bool none(std::size_t) { return false; }
double equal(std::size_t) { return 1.0; }

TEST(cell_queue, one_rank_gets_all_cells_in_order) {
  CellQueue queue(6, 3, none, equal);
  for (std::size_t cell = 0; cell < 6; ++cell) EXPECT_EQ(queue.next(0), cell);
  EXPECT_EQ(queue.next(0), std::nullopt);
  EXPECT_EQ(queue.left(), 0u);
}

TEST(cell_queue, a_rank_keeps_its_input) {
  CellQueue queue(6, 3, none, equal);
  EXPECT_EQ(queue.next(0), 0u);
  EXPECT_EQ(queue.next(1), 3u);
  EXPECT_EQ(queue.next(0), 1u);
  EXPECT_EQ(queue.next(1), 4u);
}

TEST(cell_queue, ranks_without_an_input_share_the_longest) {
  CellQueue queue(5, 5, none, equal);
  EXPECT_EQ(queue.next(0), 0u);
  EXPECT_EQ(queue.next(1), 1u);
  EXPECT_EQ(queue.next(2), 2u);
  EXPECT_EQ(queue.next(0), 3u);
  // The last cell of an input stays with a rank that has it loaded.
  EXPECT_EQ(queue.next(3), std::nullopt);
  EXPECT_EQ(queue.next(1), 4u);
}

TEST(cell_queue, long_inputs_come_first) {
  // Three inputs of two cells.
  CellQueue queue(6, 2, none, [](std::size_t cell) { return cell / 2 == 1 ? 9.0 : 1.0; });
  EXPECT_EQ(queue.next(0), 2u);
  EXPECT_EQ(queue.next(1), 0u);
  EXPECT_EQ(queue.next(0), 3u);
  EXPECT_EQ(queue.next(0), 4u);
}

TEST(cell_queue, an_input_is_shared_while_loading_it_again_pays) {
  for (const double load : {1.0, 9.0}) {
    CellQueue queue(8, 8, none, equal);
    for (std::size_t cell = 0; cell < 3; ++cell) {
      EXPECT_EQ(queue.next(0), cell);
      queue.finished(0, cell == 0 ? load + 1.0 : 1.0);
    }
    // Five seconds of work are left.
    EXPECT_EQ(queue.next(1), load < 4.0 ? std::optional<std::size_t>(3) : std::nullopt);
  }
}

TEST(cell_queue, cells_with_rows_are_left_out) {
  CellQueue queue(
      6, 3, [](std::size_t cell) { return cell != 1 && cell != 5; }, equal);
  EXPECT_EQ(queue.left(), 2u);
  EXPECT_EQ(queue.next(0), 1u);
  EXPECT_EQ(queue.next(0), 5u);
}

TEST(cell_queue, what_a_lost_rank_had_not_begun_goes_to_others) {
  CellQueue queue(4, 4, none, equal);
  EXPECT_EQ(queue.next(0), 0u);
  EXPECT_EQ(queue.in_hand(0), 0u);
  EXPECT_EQ(queue.next(1), 1u);
  queue.leave(0);
  EXPECT_EQ(queue.in_hand(0), std::nullopt);
  std::set<std::size_t> rest;
  while (const std::optional<std::size_t> cell = queue.next(1)) rest.insert(*cell);
  EXPECT_EQ(rest, (std::set<std::size_t>{2, 3}));
}

// A sweep as time alone: what loading an input and computing a cell of it take.
struct Sweep {
  std::vector<double> load;  // seconds, [inputs]
  std::vector<double> cell;
  std::size_t cells_per_input = 0;

  double total() const {
    double seconds = 0.0;
    for (std::size_t i = 0; i < load.size(); ++i) {
      seconds += load[i] + static_cast<double>(cells_per_input) * cell[i];
    }
    return seconds;
  }
};
// When the last of the ranks is done. Longer inputs take longer.
double seconds_of(const Sweep& sweep, int num_ranks) {
  const std::size_t per_input = sweep.cells_per_input;
  CellQueue queue(sweep.load.size() * per_input, per_input, none,
                  [&](std::size_t cell) { return sweep.cell[cell / per_input]; });
  struct Running {
    double end = 0.0;
    double seconds = 0.0;
  };
  std::map<int, Running> running;
  std::map<int, std::size_t> loaded;
  double now = 0.0;
  const auto serve = [&] {
    for (int rank = 0; rank < num_ranks; ++rank) {
      if (running.contains(rank)) continue;
      const std::optional<std::size_t> cell = queue.next(rank);
      if (!cell) continue;
      const std::size_t input = *cell / per_input;
      const auto had = loaded.find(rank);
      const bool loads = had == loaded.end() || had->second != input;
      const double seconds = sweep.cell[input] + (loads ? sweep.load[input] : 0.0);
      loaded[rank] = input;
      running[rank] = {.end = now + seconds, .seconds = seconds};
    }
  };
  serve();
  while (!running.empty()) {
    const auto first =
        std::min_element(running.begin(), running.end(),
                         [](const auto& a, const auto& b) { return a.second.end < b.second.end; });
    const auto [rank, done] = *first;
    now = done.end;
    running.erase(first);
    queue.finished(rank, done.seconds);
    serve();
  }
  EXPECT_EQ(queue.left(), 0u);
  return now;
}

// Seconds as configs/tables/ranks.json takes them on an H200.
TEST(cell_queue, two_ranks_take_half_the_time_and_half_a_load_of_the_shortest) {
  const Sweep sweep = {
      .load = {1.2, 2.5, 4.0, 5.9}, .cell = {0.13, 0.31, 0.60, 0.99}, .cells_per_input = 33};
  EXPECT_NEAR(seconds_of(sweep, 1), sweep.total(), 1e-9);
  EXPECT_LE(seconds_of(sweep, 2), 0.5 * (sweep.total() + sweep.load[0]) + sweep.cell[0]);
}

TEST(cell_queue, ranks_share_the_time_of_many_inputs) {
  Sweep sweep = {.load = {}, .cell = {}, .cells_per_input = 12};
  for (int i = 1; i <= 20; ++i) {
    sweep.load.push_back(0.2 * i);
    sweep.cell.push_back(0.05 * i);
  }
  for (const int ranks : {2, 3, 4, 8}) {
    EXPECT_LE(seconds_of(sweep, ranks), 1.06 * sweep.total() / ranks) << ranks << " ranks";
  }
}

TEST(cell_queue, more_ranks_than_inputs_are_no_slower_than_fewer) {
  const Sweep sweep = {
      .load = {1.2, 2.5, 4.0, 5.9}, .cell = {0.13, 0.31, 0.60, 0.99}, .cells_per_input = 33};
  double before = sweep.total();
  for (int ranks = 2; ranks <= 8; ++ranks) {
    const double seconds = seconds_of(sweep, ranks);
    EXPECT_LE(seconds, before) << ranks << " ranks";
    before = seconds;
  }
  EXPECT_LE(before, 0.25 * sweep.total());
}

// What is left is shorter than loading the input again: its owner finishes it.
TEST(cell_queue, a_rank_does_not_load_an_input_for_less_work_than_that) {
  const Sweep sweep = {.load = {3.0, 3.0}, .cell = {0.1, 0.2}, .cells_per_input = 10};
  EXPECT_NEAR(seconds_of(sweep, 2), 3.0 + 10 * 0.2, 1e-9);
}

TEST(cell_queue, no_cells_is_empty) {
  CellQueue queue(0, 0, none, equal);
  EXPECT_EQ(queue.next(0), std::nullopt);
}

}  // namespace
}  // namespace s2o
