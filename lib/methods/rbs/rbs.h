// Settings and device planner of RBS (definition: rbs.cpp).
#pragma once

#include <memory>
#include <optional>

#include "lib/methods/common/block_energy.h"
#include "lib/planning/tile_planner.h"

namespace s2o {

struct RbsSettings {
  float alpha_base;                   // blocks with energy >= alpha_base * the maximum are kept
  std::optional<float> alpha_rescue;  // the same for the lifted energy; unset: no such branch
  ForcedBlocks forced;
  PlannedFold fold;  // what stands in for the keys that are not visited
};

std::unique_ptr<Planner> rbs_planner(const Problem& problem, const RbsSettings& settings,
                                     const PlannerLimits& limits);

}  // namespace s2o
