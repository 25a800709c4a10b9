// Rotary position embedding, in the half-split layout of Hugging Face checkpoints: element i of a
// head pairs with element i + head_dim / 2.
#pragma once

#include <cstdint>
#include <vector>

#include "lib/model/rope_config.h"

namespace s2o {

class RopeTable {
 public:
  // Scaled cosines and sines of positions [0, seqlen), in fp32 as transformers computes them
  // (angle = position * frequency in fp32).
  RopeTable(const RopeFrequencies& frequencies, std::int64_t seqlen);

  // Rotates `row` [head_dim] in place to `position`.
  void rotate(float* row, std::int64_t position) const;

 private:
  std::int64_t half_;       // head_dim / 2
  std::vector<float> cos_;  // [seqlen, head_dim / 2]
  std::vector<float> sin_;  // [seqlen, head_dim / 2]
};

}  // namespace s2o
