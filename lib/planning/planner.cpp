#include "lib/planning/planner.h"

#include <algorithm>

namespace s2o {

std::vector<std::int32_t> order_by_batch(std::vector<std::int32_t> tile_order, int num_q_tiles,
                                         const std::vector<std::int32_t>& ends) {
  if (ends.size() <= 1) return tile_order;
  const auto batch_of = [&](std::int32_t tile) {
    return std::upper_bound(ends.begin(), ends.end(), tile % num_q_tiles) - ends.begin();
  };
  std::stable_sort(tile_order.begin(), tile_order.end(),
                   [&](std::int32_t a, std::int32_t b) { return batch_of(a) < batch_of(b); });
  return tile_order;
}

}  // namespace s2o
