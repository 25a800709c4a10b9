// Settings and device planner of MeanPooling (definition: mean_pooling.cpp).
#pragma once

#include <memory>

#include "lib/planning/tile_planner.h"

namespace s2o {

struct MeanPoolingSettings {
  int block;         // tokens of a block of queries, and of keys
  double threshold;  // share of each row's mass
  PlannedFold fold;  // what stands in for the keys that are not visited
};

std::unique_ptr<Planner> mean_pooling_planner(const Problem& problem,
                                              const MeanPoolingSettings& settings,
                                              const PlannerLimits& limits);

}  // namespace s2o
