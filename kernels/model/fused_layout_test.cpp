#include "kernels/model/fused_layout.h"

#include <gtest/gtest.h>

#include <set>

namespace s2o {
namespace {

TEST(FusedLayout, row_holds_queries_then_keys_then_values) {
  constexpr FusedLayout layout = {.num_q_heads = 32, .num_kv_heads = 8, .head_dim = 128};
  static_assert(layout.num_heads() == 48);
  static_assert(layout.width() == 6144);
  static_assert(layout.head_at(31).kind == HeadKind::kQuery && layout.head_at(31).head == 31);
  static_assert(layout.head_at(32).kind == HeadKind::kKey && layout.head_at(32).head == 0);
  static_assert(layout.head_at(39).kind == HeadKind::kKey && layout.head_at(39).head == 7);
  static_assert(layout.head_at(40).kind == HeadKind::kValue && layout.head_at(40).head == 0);
  static_assert(layout.head_at(47).kind == HeadKind::kValue && layout.head_at(47).head == 7);
}

TEST(FusedLayout, rotary_lanes_cover_each_pair_of_a_head_once) {
  for (const int head_dim : {64, 128}) {
    std::set<int> seen;
    for (int lane = 0; lane < rotary_lanes(head_dim); ++lane) {
      const RotaryLane at = rotary_lane(lane, head_dim);
      EXPECT_EQ(at.second - at.first, head_dim / 2);
      // Loads of 8 bytes.
      EXPECT_EQ(at.first % 4, 0);
      for (int i = 0; i < kLaneElements / 2; ++i) {
        EXPECT_TRUE(seen.insert(at.first + i).second);
        EXPECT_TRUE(seen.insert(at.second + i).second);
      }
    }
    EXPECT_EQ(seen.size(), static_cast<std::size_t>(head_dim));
    EXPECT_EQ(*seen.rbegin(), head_dim - 1);
  }
}

TEST(FusedLayout, offsets_exceed_32_bits) {
  EXPECT_EQ(head_major_offset(31, 1 << 20, (1 << 20) - 1, 128), (1ll << 32) - 128);
}

}  // namespace
}  // namespace s2o
