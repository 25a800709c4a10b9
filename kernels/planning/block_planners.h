// Planners of the methods that score blocks by pooled queries and keys; definitions are in
// lib/methods/*.cpp, at level A ("official" rounding). UnsupportedError when the settings cannot
// run on the problem.
#pragma once

#include <cstdint>
#include <memory>

#include "kernels/planning/tile_planner.h"

namespace s2o {

struct MeanPoolingDeviceSettings {
  int block = 128;
  float threshold = 0.9f;
  PlannedFold fold;
  ItemRoom room;
};
std::unique_ptr<Planner> make_mean_pooling_planner(const Problem& problem,
                                                   const MeanPoolingDeviceSettings& settings,
                                                   std::int64_t l2_bytes);

struct PbsDeviceSettings {
  int block = 128;
  int segment = 256;  // tokens, a multiple of block, shorter than the sequence
  float threshold = 0.9f;
  PlannedFold fold;  // granularity is the segment
  ItemRoom room;
};
std::unique_ptr<Planner> make_pbs_planner(const Problem& problem, const PbsDeviceSettings& settings,
                                          std::int64_t l2_bytes);

struct SpargeDeviceSettings {
  int block_m = 128;
  int block_n = 64;
  float similarity_threshold = -0.1f;
  bool by_mass = false;  // keep `share` of the mass, else `share` of all key blocks
  float share = 0.5f;
  bool attention_sink = false;  // block 0 is visited always
  float pv_skip_threshold = 50.0f;
  int pv_skip_exempt = 2;
  PlannedFold fold;
  ItemRoom room;
};
std::unique_ptr<Planner> make_sparge_planner(const Problem& problem,
                                             const SpargeDeviceSettings& settings,
                                             std::int64_t l2_bytes);

}  // namespace s2o
