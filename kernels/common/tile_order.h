// The order in which the tiles of a pass start. Host-safe.
#pragma once

#include <cstdint>
#include <vector>

#include "kernels/common/plan_view.h"
#include "kernels/common/problem.h"

namespace s2o {

// Tiles of a pass in launch order (plan_head * num_q_tiles + tile): KV heads in groups of about one
// size whose keys and values fit half the L2 cache, inside a group the tiles with most keys first,
// by powers of two of their number; of these late rows first, whatever the head: tiles that visit
// the same keys are under way together. `pass` holds host pointers.
std::vector<std::int32_t> tile_launch_order(const Problem& problem, const PlanView& plan,
                                            const PassView& pass, std::int64_t l2_bytes);

}  // namespace s2o
