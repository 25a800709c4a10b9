#include "lib/ranks/cell_queue.h"

#include <gtest/gtest.h>

#include <set>

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

TEST(cell_queue, no_cells_is_empty) {
  CellQueue queue(0, 0, none, equal);
  EXPECT_EQ(queue.next(0), std::nullopt);
}

}  // namespace
}  // namespace s2o
