// Planners of FlashPrefill (both versions) and RBS; definitions are in lib/methods/*.cpp, at level
// A
// ("official" rounding).
#pragma once

#include <memory>

#include "kernels/planning/tile_planner.h"

namespace s2o {

struct FlashPrefillDeviceSettings {
  bool packed = true;  // V2, else V1
  float alpha = 0.1f;
  int sink_blocks = 2;
  int window_blocks = 4;
  int last_tiles = 8;
  PlannedFold fold = {.rule = {.kind = Compensation::kBlocks, .fold_block = 128}};
  ItemRoom room;
};
std::unique_ptr<Planner> make_flash_prefill_planner(const Problem& problem,
                                                    const FlashPrefillDeviceSettings& settings,
                                                    std::int64_t l2_bytes);

struct RbsDeviceSettings {
  float alpha_base = 0.22f;
  bool rescue = true;
  float alpha_rescue = 0.18f;
  int sink_blocks = 2;
  int window_blocks = 4;
  int last_tiles = 2;
  PlannedFold fold;
  ItemRoom room;
};
std::unique_ptr<Planner> make_rbs_planner(const Problem& problem, const RbsDeviceSettings& settings,
                                          std::int64_t l2_bytes);

}  // namespace s2o
