// A plan whose arrays are in device memory. Host-safe.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "kernels/common/plan_view.h"

namespace s2o {

struct DevicePlan {
  PlanView header;               // passes is null
  std::vector<PassView> passes;  // device pointers
  // Per pass: plan_head * num_q_tiles + tile in launch order, [num_plan_heads * num_q_tiles].
  std::vector<const std::int32_t*> tile_orders;
  // A planner whose lists would take too much memory plans in batches of tiles, which share it:
  // batch b is entries [batch_ends[b - 1], batch_ends[b]) of every tile order. Batches hold whole
  // tiles of all passes. Empty: one batch. Token lists share memory, and items where item_counts
  // says how many there are.
  std::vector<std::int32_t> batch_ends;

  int num_batches() const { return batch_ends.empty() ? 1 : static_cast<int>(batch_ends.size()); }
  std::int32_t batch_begin(int batch) const {
    return batch == 0 ? 0 : batch_ends[static_cast<std::size_t>(batch - 1)];
  }
  std::int32_t batch_end(int batch) const {
    return batch_ends.empty() ? header.num_plan_heads * header.num_q_tiles
                              : batch_ends[static_cast<std::size_t>(batch)];
  }
};

}  // namespace s2o
