// True attention mass of every key for every query tile: the ground truth of the oracles.
#pragma once

#include <cstdint>
#include <vector>

#include "lib/methods/method.h"

namespace s2o {

// a[x] = sum over rows t of tile i of exp(q_t . k_x * scale - lse[t]), causal, for x in [0, end).
// fp32 logits, lse from the dense reference; memory of one row of length `end`.
std::vector<float> key_mass(const PlanContext& context, int q_head, std::int64_t first_row,
                            std::int64_t end_row, std::int64_t end);

}  // namespace s2o
