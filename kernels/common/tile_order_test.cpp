#include "kernels/common/tile_order.h"

#include <gtest/gtest.h>

#include <algorithm>

namespace s2o {
namespace {

// Two KV heads of 2 MiB each (K and V): an L2 of 4 MiB holds one at a time.
TEST(TileLaunchOrder, groups_kv_heads_and_starts_heavy_tiles_first) {
  constexpr Problem kProblem{
      .seqlen = 4096, .num_q_heads = 8, .num_kv_heads = 2, .head_dim = 128, .softmax_scale = 0.1f};
  PlanView plan;
  plan.num_plan_heads = 8;
  plan.num_q_tiles = 32;
  std::vector<PlanItem> items;
  std::vector<std::int64_t> offsets = {0};
  for (int head = 0; head < 8; ++head) {
    for (int tile = 0; tile < plan.num_q_tiles; ++tile) {
      items.push_back({.count = 128 * (tile + 1)});
      offsets.push_back(static_cast<std::int64_t>(items.size()));
    }
  }
  PassView pass;
  pass.items = items.data();
  pass.item_offsets = offsets.data();
  const auto order = tile_launch_order(kProblem, plan, pass, 4 << 20);
  ASSERT_EQ(order.size(), 8u * 32);
  EXPECT_EQ(order[0], 31);                // head 0, last tile
  EXPECT_EQ(order[1], 63);                // head 1, last tile: same weight, higher index
  EXPECT_EQ(order[4], 30);                // head 0, the tile before
  EXPECT_EQ(order[4 * 32], 4 * 32 + 31);  // then the heads of the second KV head
  std::vector<std::int32_t> sorted = order;
  std::sort(sorted.begin(), sorted.end());
  for (std::size_t i = 0; i < sorted.size(); ++i)
    EXPECT_EQ(sorted[i], static_cast<std::int32_t>(i));
  // A large cache holds all heads: the heavy tiles of all of them come first.
  EXPECT_EQ(tile_launch_order(kProblem, plan, pass, 64 << 20)[7], 7 * 32 + 31);
}

// Five KV heads of 2 MiB each, of which four would fit: three and two.
TEST(TileLaunchOrder, groups_are_of_about_one_size) {
  constexpr Problem kProblem{
      .seqlen = 4096, .num_q_heads = 5, .num_kv_heads = 5, .head_dim = 128, .softmax_scale = 0.1f};
  PlanView plan;
  plan.num_plan_heads = 5;
  plan.num_q_tiles = 1;
  const std::vector<PlanItem> items = {
      {.count = 1}, {.count = 2}, {.count = 4}, {.count = 8}, {.count = 16}};
  const std::vector<std::int64_t> offsets = {0, 1, 2, 3, 4, 5};
  PassView pass;
  pass.items = items.data();
  pass.item_offsets = offsets.data();
  EXPECT_EQ(tile_launch_order(kProblem, plan, pass, 16 << 20),
            (std::vector<std::int32_t>{2, 1, 0, 4, 3}));
}

// 5 keys and 7 are of one size, 8 are more, 3 less.
TEST(TileLaunchOrder, tiles_of_about_the_same_length_go_by_position) {
  constexpr Problem kProblem{
      .seqlen = 512, .num_q_heads = 2, .num_kv_heads = 1, .head_dim = 128, .softmax_scale = 0.1f};
  PlanView plan;
  plan.num_plan_heads = 2;
  plan.num_q_tiles = 4;
  std::vector<PlanItem> items;
  std::vector<std::int64_t> offsets = {0};
  for (const int count : {7, 5, 8, 3, 5, 7, 5, 7}) {
    items.push_back({.count = count});
    offsets.push_back(static_cast<std::int64_t>(items.size()));
  }
  PassView pass;
  pass.items = items.data();
  pass.item_offsets = offsets.data();
  EXPECT_EQ(tile_launch_order(kProblem, plan, pass, 1 << 20),
            (std::vector<std::int32_t>{2, 7, 6, 1, 5, 0, 4, 3}));
}

}  // namespace
}  // namespace s2o
