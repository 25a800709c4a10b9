// What the device planners of several methods share, and how plans of the CPU fold as theirs do.
#pragma once

#include "kernels/common/ceil_div.h"
#include "lib/methods/method.h"
#include "lib/planning/tile_planner.h"

namespace s2o {

// Parameter `compensation` of methods that select blocks of `block` keys.
PlannedFold planned_fold(const ParamSet& params, int block);
// Gives the one pass of a plan its header.fold and fold_end: unvisited keys may be folded in blocks
// that end at or before the first position of their tile, in the past of every row.
void apply_fold(const PlannedFold& fold, const Problem& problem, SparsePlan& plan);

// Device planners round as the original code does, in the 16-bit type of the input (level A), and
// work on blocks of 64 or 128 tokens.
bool rounds_officially(const DevicePlanningRequest& request);
inline bool is_device_block(std::int64_t block) { return block == 64 || block == 128; }

}  // namespace s2o
