// What planners share whose plan has one pass and writes its items on the device: the arrays of the
// plan, with room for the most items that a tile can need. That room grows with the square of the
// sequence: beyond a limit, tiles are planned in batches that share it.
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "lib/planning/planner.h"

namespace s2o {

// What stands in for the keys that a tile does not visit, in blocks of the method's own size.
struct PlannedFold {
  FoldRule rule;
  // Folds end at multiples of this many key slots; 0: of rule.fold_block.
  std::int64_t granularity = 0;

  std::int64_t step() const { return granularity > 0 ? granularity : rule.fold_block; }
};

// Query tiles [first_tile, end_tile) of every plan head.
struct TileBatch {
  std::int32_t first_tile = 0;
  std::int32_t end_tile = 0;
};

class TilePlanner : public Planner {
 public:
  int num_batches() const override { return static_cast<int>(batches_.size()); }
  void plan(const DeviceInput& input, PlanningKernels& kernels) const override {
    kernels.clear(bad_row_.data(), bad_row_.size_bytes());
    prepare(input, kernels);
    plan_next(0, input, kernels);
  }
  void plan_next(int batch, const DeviceInput& input, PlanningKernels& kernels) const override {
    plan_tiles(batches_[static_cast<std::size_t>(batch)], input, kernels);
  }
  DevicePlan device_plan() const override;
  const std::uint32_t* error_word() const override { return bad_row_.data(); }
  std::string row_name(std::int64_t row) const override;

 protected:
  // `max_items(tile)` is the room of a tile, the same for every plan head. Batches end at multiples
  // of `tile_group` tiles.
  TilePlanner(const Problem& problem, int block_m, int block_n, int pack, const PlannedFold& fold,
              const std::function<std::int64_t(int tile)>& max_items, const PlannerLimits& limits,
              int tile_group = 1);

  // What all batches share, before the first of them.
  virtual void prepare(const DeviceInput& /*input*/, PlanningKernels& /*kernels*/) const {}
  // Writes the items of the tiles of a batch.
  virtual void plan_tiles(const TileBatch& batch, const DeviceInput& input,
                          PlanningKernels& kernels) const = 0;
  const std::vector<TileBatch>& batches() const { return batches_; }

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

 private:
  std::vector<TileBatch> batches_;
};

}  // namespace s2o
