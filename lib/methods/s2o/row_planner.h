// Planning of `s2o_plus` with the ranking by all rows of a tile in low precision (definition:
// lib/methods/s2o/row_ranking.h). Host-safe.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "lib/methods/s2o/row_ranking.h"
#include "lib/planning/planner.h"

namespace s2o {

// A list has room for one of so many keys of a long history (HistoryShape::kept_fraction): a walk
// that ends at tau visits less.
constexpr int rows_kept_fraction(float tau) { return tau >= 0.002f ? 4 : tau >= 0.0005f ? 2 : 1; }

struct RowPlannerSettings {
  RowRankingSettings ranking;
  int block_n;        // keys of a step
  int kept_fraction;  // as in HistoryShape
  StopRule stop;
  FoldRule fold;
  // [num_q_heads], PassView::head_taus; lists of a head are kept by its own. Empty: `stop` and
  // kept_fraction count for all.
  std::vector<float> head_taus = {};
};

std::unique_ptr<Planner> make_row_planner(const Problem& problem,
                                          const RowPlannerSettings& settings,
                                          const PlannerLimits& limits);

}  // namespace s2o
