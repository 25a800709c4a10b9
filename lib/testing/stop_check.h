// Compares where two executions of a plan stopped early. Tests only.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "kernels/testing/row_reference.h"
#include "lib/testing/compare.h"

namespace s2o::testing {

// A tile that stops at another step is a near-tie when a gain that decided lies this close to tau,
// relative to it: exponentials on the device are exact to 2^-22, logits to about 1e-6.
inline constexpr double kNearTieTolerance = 1e-4;

struct StopCheck {
  std::int64_t stoppable_tiles = 0;         // over all passes
  std::int64_t near_ties = 0;               // stopped at another step, as a near-tie
  std::int64_t disagreements = 0;           // stopped at another step, and the gain is not near tau
  std::vector<std::int64_t> affected_rows;  // q_head * seqlen + position of those tiles
  std::string worst;                        // the disagreement furthest from tau
};

StopCheck check_stops(const Problem& problem, const PlanView& plan, const RowInputs& inputs,
                      const std::vector<TileStats>& actual, const std::vector<TileStats>& expected);

// Makes both results agree in rows that a near-tie has touched, so that compare() judges the rest.
void drop_rows(const std::vector<std::int64_t>& rows, int head_dim, KernelResult& a,
               KernelResult& b);

}  // namespace s2o::testing
