#include "lib/testing/plan_compare.h"

#include <cstddef>
#include <vector>

namespace s2o::testing {
namespace {

// Tokens that a tile of a plan visits.
std::vector<bool> visited_keys(const Problem& problem, const SparsePlan& plan, int head, int tile) {
  std::vector<bool> visited(static_cast<std::size_t>(problem.seqlen), false);
  for (const PlanPass& pass : plan.passes) {
    const auto index = static_cast<std::size_t>(plan.tile_index(head, tile));
    for (std::int64_t i = pass.item_offsets[index]; i < pass.item_offsets[index + 1]; ++i) {
      const PlanItem& item = pass.items[static_cast<std::size_t>(i)];
      for (std::int64_t slot = item.begin; slot < item.begin + item.count; ++slot) {
        std::int64_t key = slot;
        if (item.kind == ItemKind::kGather) {
          key = pass.gather_indices[static_cast<std::size_t>(slot)];
        } else if (!pass.key_order.empty()) {
          key = pass.key_order[static_cast<std::size_t>(head * problem.seqlen + slot)];
        }
        visited[static_cast<std::size_t>(key)] = true;
      }
    }
  }
  return visited;
}

}  // namespace

PlanDifference compare_plans(const Problem& problem, const SparsePlan& plan,
                             const SparsePlan& reference) {
  PlanDifference difference;
  for (int head = 0; head < reference.header.num_plan_heads; ++head) {
    for (int tile = 0; tile < reference.header.num_q_tiles; ++tile) {
      const auto got = visited_keys(problem, plan, head, tile);
      const auto expected = visited_keys(problem, reference, head, tile);
      ++difference.tiles;
      bool differs = false;
      for (std::size_t key = 0; key < got.size(); ++key) {
        difference.keys += expected[key] ? 1 : 0;
        difference.extra_keys += got[key] && !expected[key] ? 1 : 0;
        difference.missing_keys += !got[key] && expected[key] ? 1 : 0;
        differs = differs || got[key] != expected[key];
      }
      difference.differing_tiles += differs ? 1 : 0;
    }
  }
  return difference;
}

}  // namespace s2o::testing
