#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "lib/testing/block_selections.h"

namespace s2o {
namespace {

using ::testing::ElementsAre;
using testing::plan_of;
using testing::set_k;
using testing::set_q;
using testing::visited_blocks;
using testing::zero_input;

TEST(TopBlocks, equal_blocks_are_taken_from_the_first) {
  const AttentionInput input = zero_input({1024, 4, 2, 16});
  const SparsePlan plan = plan_of("top_blocks", input, {{"topk", 3}});
  EXPECT_THAT(visited_blocks(input.problem, plan, 1, 0), ElementsAre(0));
  EXPECT_THAT(visited_blocks(input.problem, plan, 1, 2), ElementsAre(0, 1, 2));
  EXPECT_THAT(visited_blocks(input.problem, plan, 1, 7), ElementsAre(0, 1, 2, 7));
}

TEST(TopBlocks, the_best_blocks_are_kept_beside_the_forced_ones) {
  AttentionInput input = zero_input({1024, 4, 2, 16});
  set_q(input, 0, 1024, 3, 32.0f);
  set_k(input, 3 * 128, 4 * 128, 3, 2.0f);
  set_k(input, 5 * 128, 6 * 128, 3, 1.0f);
  EXPECT_THAT(visited_blocks(input.problem, plan_of("top_blocks", input, {{"topk", 1}}), 3, 7),
              ElementsAre(0, 3, 7));
  EXPECT_THAT(visited_blocks(input.problem, plan_of("top_blocks", input, {{"topk", 2}}), 3, 7),
              ElementsAre(0, 3, 5, 7));
}

}  // namespace
}  // namespace s2o
