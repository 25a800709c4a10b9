// What the device planners of several methods share.
#pragma once

#include "kernels/common/ceil_div.h"
#include "lib/methods/method.h"
#include "lib/planning/tile_planner.h"

namespace s2o {

// Parameter `compensation` of methods that select blocks of `block` keys.
PlannedFold planned_fold(const ParamSet& params, int block);

// Device planners round as the original code does, in the 16-bit type of the input (level A), and
// work on blocks of 64 or 128 tokens.
bool rounds_officially(const DevicePlanningRequest& request);
inline bool is_device_block(std::int64_t block) { return block == 64 || block == 128; }

}  // namespace s2o
