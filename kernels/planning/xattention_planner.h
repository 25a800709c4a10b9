// Planning of XAttention on a device (definition: lib/methods/xattention.cpp), at level A
// ("official" rounding).
#pragma once

#include <cstdint>
#include <memory>

#include "kernels/planning/tile_planner.h"

namespace s2o {

struct XAttentionDeviceSettings {
  int block = 128;
  int stride = 8;  // block / stride is 8, 16 or 32
  double threshold = 0.9;
  std::int64_t chunk = 0;  // tokens whose rows follow the rule of the first chunk
  // Partial sums of several tiles of rows are in memory together within this many bytes.
  std::int64_t sum_bytes = std::int64_t{1} << 30;
  PlannedFold fold;
  std::int64_t item_bytes_per_token = kItemBytesPerToken;
};
// UnsupportedError when the settings cannot run on the problem.
std::unique_ptr<Planner> make_xattention_planner(const Problem& problem,
                                                 const XAttentionDeviceSettings& settings,
                                                 std::int64_t l2_bytes);

}  // namespace s2o
