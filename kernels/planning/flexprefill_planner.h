// Planning of FlexPrefill on a device (definition: lib/methods/flexprefill.cpp), at level A
// ("official" rounding).
#pragma once

#include <cstdint>
#include <memory>

#include "kernels/planning/tile_planner.h"

namespace s2o {

struct FlexPrefillDeviceSettings {
  int block = 128;
  double gamma = 0.95;
  double tau = 0.1;
  std::int64_t min_blocks = 8;  // least columns and least diagonals
  bool dense = false;           // every causal block
  // Block probabilities of several heads are in memory together within this many bytes.
  std::int64_t probability_bytes = std::int64_t{1} << 29;
  PlannedFold fold;
};
// UnsupportedError when the settings cannot run on the problem.
std::unique_ptr<Planner> make_flexprefill_planner(const Problem& problem,
                                                  const FlexPrefillDeviceSettings& settings,
                                                  std::int64_t l2_bytes);

}  // namespace s2o
