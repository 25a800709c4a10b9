// A planner: what one method does on the device to fill the arrays of a plan. Host-safe.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "kernels/common/device_input.h"
#include "kernels/common/device_plan.h"
#include "kernels/planning/op.h"
#include "lib/planning/workspace.h"

namespace s2o {

// Tiles [ends[b - 1], ends[b]) of every plan head are batch b: a launch order with tiles of earlier
// batches first, else as before.
std::vector<std::int32_t> order_by_batch(std::vector<std::int32_t> tile_order, int num_q_tiles,
                                         const std::vector<std::int32_t>& ends);

// Lists of a plan in memory at a time, items or orders, per token and query head. Up to 131,072
// tokens no method needs more.
inline constexpr std::int64_t kListBytesPerToken = 256;

// What a planner may take of the device. Tests make the room small.
struct PlannerLimits {
  std::int64_t l2_bytes = 0;  // of the device: decides the order of tiles
  // Longer lists are planned in batches of tiles that share memory; always room for one tile.
  std::int64_t list_bytes_per_token = kListBytesPerToken;
  std::int64_t scratch_bytes = 0;  // of scores that are computed in parts; 0: the planner's choice
};

// What planning must at least compute and move, to be set against the measured time.
struct PlanningCost {
  double flops = 0.0;
  double bytes = 0.0;  // device memory read and written, each array once per use
};

// A new planner has declared its arrays in workspace(); whoever owns it binds them to memory and
// copies the constants before plan().
class Planner {
 public:
  virtual ~Planner() = default;
  Workspace& workspace() { return workspace_; }
  const Workspace& workspace() const { return workspace_; }
  virtual PlanningCost cost() const = 0;
  // Plans one layer of the problem given at construction, or its first batch; neither allocates nor
  // waits.
  virtual void plan(const DeviceInput& input, PlanningKernels& kernels) const = 0;
  virtual int num_batches() const { return 1; }
  // Replaces the batch before by this one, of 1 to num_batches() - 1, one after the other.
  virtual void plan_next(int /*batch*/, const DeviceInput& /*input*/,
                         PlanningKernels& /*kernels*/) const {}
  // The arrays hold a plan once the work of plan() is done.
  virtual DevicePlan device_plan() const = 0;
  // Word that kernels set when they meet a score that is not finite: zero, or the complement of the
  // row's number. Null when nothing is checked.
  virtual const std::uint32_t* error_word() const { return nullptr; }
  // "query head 3, segment 5" of a row number.
  virtual std::string row_name(std::int64_t row) const { return "row " + std::to_string(row); }

 protected:
  Workspace workspace_;
};

}  // namespace s2o
