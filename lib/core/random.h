// Counter-based random numbers: the value depends on (seed, stream, index) alone, so inputs never
// depend on thread count, device or evaluation order.
#pragma once

#include <cmath>
#include <cstdint>
#include <numbers>

namespace s2o {

// SplitMix64 finaliser: a bijective mix of 64 bits.
constexpr std::uint64_t mix_bits(std::uint64_t x) {
  x += 0x9e3779b97f4a7c15ull;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
  return x ^ (x >> 31);
}

class CounterRandom {
 public:
  constexpr CounterRandom(std::uint64_t seed, std::uint64_t stream)
      : key_(mix_bits(mix_bits(seed) ^ (stream * 0xd1342543de82ef95ull + 1))) {}

  constexpr std::uint64_t bits(std::uint64_t index) const {
    return mix_bits(key_ ^ mix_bits(index));
  }
  // Uniform in (0, 1).
  constexpr double uniform(std::uint64_t index) const {
    return (static_cast<double>(bits(index) >> 11) + 0.5) * 0x1.0p-53;
  }
  // Standard normal (Box-Muller on two counters).
  double normal(std::uint64_t index) const {
    return std::sqrt(-2.0 * std::log(uniform(2 * index))) *
           std::cos(2.0 * std::numbers::pi * uniform(2 * index + 1));
  }
  // Uniform integer in [0, n), n > 0.
  constexpr std::int64_t below(std::uint64_t index, std::int64_t n) const {
    return static_cast<std::int64_t>(bits(index) % static_cast<std::uint64_t>(n));
  }

 private:
  std::uint64_t key_;
};

}  // namespace s2o
