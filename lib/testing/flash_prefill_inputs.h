// Settings and random cases that the FlashPrefill tests share.
#pragma once

#include <cstdint>
#include <vector>

#include "lib/testing/block_selections.h"

namespace s2o::flash_prefill_testing {

using Json = nlohmann::ordered_json;

constexpr int kB = 128;  // keys of a block and rows of a tile

struct Rule {
  int version = 2;
  double alpha = 0.1;
  int sink = 2;
  int window = 4;
  int tail = 8;

  Json json(bool correction = false) const {
    return {{"version", version == 2 ? "v2" : "v1"},
            {"alpha", alpha},
            {"sink_blocks", sink},
            {"window_blocks", window},
            {"last_tiles", tail},
            {"mean_correction", correction}};
  }
};

// A random shape and rule, from a counter.
struct RandomCase {
  testing::Shape shape;
  Rule rule;
};
inline RandomCase random_case(std::uint64_t seed, int version) {
  const CounterRandom random(seed, 99);
  const int g = 1 + static_cast<int>(random.below(0, 8));
  const int kv_heads = 1 + static_cast<int>(random.below(1, 2));
  const std::vector<double> alphas = {0.0, 0.0125, 0.05, 0.1, 0.4, 1.0};
  return {.shape = {1 + random.below(2, 1800), g * kv_heads, kv_heads, 16},
          .rule = {.version = version,
                   .alpha = alphas[static_cast<std::size_t>(random.below(3, 6))],
                   .sink = static_cast<int>(random.below(4, 3)),
                   .window = 1 + static_cast<int>(random.below(5, 3)),
                   .tail = static_cast<int>(random.below(6, version == 2 ? 7 : 3))}};
}

}  // namespace s2o::flash_prefill_testing
