// What planners share whose plan has one pass and writes its items on the device: the arrays of the
// plan, with room for the most items that a tile can need.
#pragma once

#include <cstdint>
#include <functional>

#include "kernels/planning/planner.h"

namespace s2o {

// What stands in for the keys that a tile does not visit, in blocks of the method's own size.
struct PlannedFold {
  FoldRule rule;
  // Folds end at multiples of this many key slots; 0: of rule.fold_block.
  std::int64_t granularity = 0;
};

class TilePlanner : public Planner {
 public:
  DevicePlan device_plan() const override;
  const std::uint32_t* error_word() const override { return bad_row_.data(); }
  std::string row_name(std::int64_t row) const override;

 protected:
  // `max_items(tile)` is the room of a tile, the same for every plan head.
  TilePlanner(const Problem& problem, int block_m, int block_n, int pack, const PlannedFold& fold,
              const std::function<std::int64_t(int tile)>& max_items, std::int64_t l2_bytes);

  std::int64_t num_tiles() const {
    return static_cast<std::int64_t>(header_.num_plan_heads) * header_.num_q_tiles;
  }

  const Problem problem_;
  PlanView header_;
  Workspace::Array<PlanItem> items_;
  Workspace::Array<std::int64_t> item_offsets_;
  Workspace::Array<std::int32_t> item_counts_, tile_order_, fold_end_;
  Workspace::Array<std::uint32_t> bad_row_;
  // Set by planners that have them.
  Workspace::Array<std::int32_t> key_order_, gather_indices_;
};

}  // namespace s2o
