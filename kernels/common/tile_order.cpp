#include "kernels/common/tile_order.h"

#include <algorithm>
#include <bit>
#include <cstddef>
#include <numeric>

#include "kernels/common/ceil_div.h"

namespace s2o {

std::vector<std::int32_t> tile_launch_order(const Problem& problem, const PlanView& plan,
                                            const PassView& pass, std::int64_t l2_bytes) {
  const std::int64_t num_tiles = static_cast<std::int64_t>(plan.num_plan_heads) * plan.num_q_tiles;
  std::vector<std::uint64_t> keys(static_cast<std::size_t>(num_tiles), 0);
  for (std::int64_t tile = 0; tile < num_tiles; ++tile) {
    for (std::int64_t i = pass.item_offsets[tile]; i < pass.item_offsets[tile + 1]; ++i) {
      keys[static_cast<std::size_t>(tile)] += static_cast<std::uint64_t>(pass.items[i].count);
    }
  }
  const std::int64_t kv_head_bytes = 2 * problem.seqlen * problem.head_dim * 2;  // K and V, 16-bit
  const std::int64_t fitting = std::max<std::int64_t>(l2_bytes / 2 / kv_head_bytes, 1);
  // Groups of about one size: a last one of few tiles could not even out what blocks still hold.
  const std::int64_t num_groups = ceil_div(problem.num_kv_heads, fitting);
  const std::int64_t kv_heads_per_group = ceil_div(problem.num_kv_heads, num_groups);
  const std::int64_t tiles_per_kv_head = num_tiles / problem.num_kv_heads;
  const auto group = [&](std::int32_t tile) {
    return tile / tiles_per_kv_head / kv_heads_per_group;
  };
  std::vector<std::int32_t> order(static_cast<std::size_t>(num_tiles));
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](std::int32_t a, std::int32_t b) {
    if (group(a) != group(b)) return group(a) < group(b);
    const int size_a = std::bit_width(keys[static_cast<std::size_t>(a)]);
    const int size_b = std::bit_width(keys[static_cast<std::size_t>(b)]);
    if (size_a != size_b) return size_a > size_b;
    return a % plan.num_q_tiles > b % plan.num_q_tiles;
  });
  return order;
}

}  // namespace s2o
