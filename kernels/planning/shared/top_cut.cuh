// Which entries of a row a warp keeps: the best ones up to a crossing point, without sorting. The
// value at the crossing is found bit by bit, its ties by index.
#pragma once

#include "kernels/planning/shared/platform_planning.cuh"

namespace s2o::device {

struct TopCut {
  std::uint32_t value;  // bits of the value at the crossing
  std::int32_t ties;    // entries of exactly that value that are kept, lowest indices first
  bool none;            // nothing is kept

  S2O_DEVICE static TopCut everything() { return {0, 0x7fffffff, false}; }
  S2O_DEVICE static TopCut nothing() { return {0, 0, true}; }
};

struct CountAndSum {
  std::int32_t count;
  double sum;
};

// Over entries whose bits are at least (or above) `value`. Every lane gets the result; sums are
// fp64, so their order does not matter to what is compared.
template <bool kStrict>
S2O_DEVICE CountAndSum measure_from(const float* values, int count, std::uint32_t value) {
  CountAndSum total{0, 0.0};
  for (int j = lane_index(); j < count; j += 32) {
    const std::uint32_t bits = float_bits(values[j]);
    if (kStrict ? bits > value : bits >= value) {
      total.count += 1;
      total.sum += static_cast<double>(values[j]);
    }
  }
  for (int mask = 16; mask > 0; mask /= 2) {
    total.count += shuffle_xor(total.count, mask);
    total.sum += shuffle_xor(total.sum, mask);
  }
  return total;
}

// Entries in descending order, ties by lower index, up to the first prefix whose measure satisfies
// `reached` (which never becomes false again); that entry is kept iff `keep_crossing`. If no
// prefix does: all when dropping, as the cut of `otherwise`. values [count] >= 0, one warp.
template <class Reached>
S2O_DEVICE TopCut find_top_cut(const float* values, int count, const Reached& reached,
                               bool keep_crossing, TopCut otherwise) {
  if (!reached(measure_from<false>(values, count, 0))) return otherwise;
  std::uint32_t value = 0;
  for (int bit = 30; bit >= 0; --bit) {
    const std::uint32_t candidate = value | 1u << bit;
    if (reached(measure_from<false>(values, count, candidate))) value = candidate;
  }
  // Prefixes end among the ties of `value`: find the first that crosses.
  const CountAndSum above = measure_from<true>(values, count, value);
  const double tie = static_cast<double>(bits_float(value));
  for (int first = 1;; first += 32) {
    const int ties = first + lane_index();
    const std::uint32_t crossed =
        ballot(reached({above.count + ties, above.sum + static_cast<double>(ties) * tie}));
    if (crossed == 0 && first < count) continue;
    const int crossing = crossed == 0 ? count : first + lowest_bit(crossed);
    return {value, keep_crossing ? crossing : crossing - 1, false};
  }
}

// ORs the kept entries into a bitmap, one warp. Lane order is index order.
S2O_DEVICE void mark_top(const float* values, int count, const TopCut& cut, std::uint32_t* bits) {
  if (cut.none) return;
  int ties_left = cut.ties;
  for (int first = 0; first < count; first += 32) {
    const int j = first + lane_index();
    const std::uint32_t value = j < count ? float_bits(values[j]) : 0;
    const std::uint32_t tied = ballot(j < count && value == cut.value);
    const int before = count_bits(tied & ((1u << lane_index()) - 1u));
    const bool is_tie = (tied >> lane_index() & 1u) != 0;
    const bool kept = j < count && (value > cut.value || (is_tie && before < ties_left));
    const std::uint32_t word = ballot(kept);
    if (lane_index() == 0) bits[first / 32] |= word;
    const int found = count_bits(tied);
    ties_left = ties_left > found ? ties_left - found : 0;
  }
  sync_warp();
}

}  // namespace s2o::device
