// The cut of top_cut.cuh over a list too long for a warp: a whole block of threads, values read
// from global memory, two bits of the value at the crossing per reading.
#pragma once

#include "kernels/planning/shared/top_cut.cuh"

namespace s2o::device {

inline constexpr int kCutThreads = 1024;
inline constexpr int kCutWarps = kCutThreads / 32;

struct SharedCut {
  double sums[3][kCutWarps];
  std::int32_t counts[3][kCutWarps];
  std::uint32_t warp_totals[kCutWarps];
};

struct BlockCut {
  TopCut cut;
  std::int32_t kept;
};

// Measures of the entries at or above each of three values (the last: strictly above), in all
// threads. value_of(i) >= 0 for i in [0, count).
template <class ValueOf>
S2O_DEVICE void measure_block(SharedCut& s, const ValueOf& value_of, int count,
                              const std::uint32_t (&values)[3], CountAndSum (&result)[3]) {
  CountAndSum own[3] = {{0, 0.0}, {0, 0.0}, {0, 0.0}};
#pragma unroll 4
  for (int i = thread_index(); i < count; i += kCutThreads) {
    const float value = value_of(i);
    const std::uint32_t bits = float_bits(value);
#pragma unroll
    for (int c = 0; c < 3; ++c) {
      if (bits < values[c]) continue;
      own[c].count += 1;
      own[c].sum += static_cast<double>(value);
    }
  }
  sync_block(kCutThreads);  // nobody reads the last result any more
#pragma unroll
  for (int c = 0; c < 3; ++c) {
    for (int mask = 16; mask > 0; mask /= 2) {
      own[c].count += shuffle_xor(own[c].count, mask);
      own[c].sum += shuffle_xor(own[c].sum, mask);
    }
    if (lane_index() == 0) {
      s.counts[c][warp_index()] = own[c].count;
      s.sums[c][warp_index()] = own[c].sum;
    }
  }
  sync_block(kCutThreads);
#pragma unroll
  for (int c = 0; c < 3; ++c) {
    result[c] = {0, 0.0};
    for (int warp = 0; warp < kCutWarps; ++warp) {
      result[c].count += s.counts[c][warp];
      result[c].sum += s.sums[c][warp];
    }
  }
}

// Entries in descending order, ties by lower index, up to the first prefix whose measure satisfies
// `reached` (which never becomes false again); that entry is kept iff `keep_crossing`. All entries
// when no prefix does.
template <class ValueOf, class Reached>
S2O_DEVICE BlockCut find_block_cut(SharedCut& s, const ValueOf& value_of, int count,
                                   const Reached& reached, bool keep_crossing) {
  std::uint32_t value = 0;
  CountAndSum measured[3];
  for (int bit = 30; bit >= 0; bit -= 2) {
    measure_block(s, value_of, count, {value | 1u << bit, value | 2u << bit, value | 3u << bit},
                  measured);
    std::uint32_t digit = 0;
    for (std::uint32_t d = 0; d < 3; ++d) digit = reached(measured[d]) ? d + 1 : digit;
    value |= digit << bit;
  }
  measure_block(s, value_of, count, {value, value + 1, value + 1}, measured);
  if (!reached(measured[0])) return {TopCut::everything(), count};
  // Prefixes end among the ties of `value`: the first that crosses.
  const CountAndSum above = measured[1];
  const double tie = static_cast<double>(bits_float(value));
  std::int32_t low = 1;
  std::int32_t high = measured[0].count - above.count;
  while (low < high) {
    const std::int32_t middle = low + (high - low) / 2;
    if (reached({above.count + middle, above.sum + static_cast<double>(middle) * tie})) {
      high = middle;
    } else {
      low = middle + 1;
    }
  }
  const std::int32_t ties = keep_crossing ? high : high - 1;
  return {{value, ties, false}, above.count + ties};
}

// Calls visit(place, index) for the kept entries of [0, count), places in order of indices.
template <class ValueOf, class Visit>
S2O_DEVICE void visit_kept(SharedCut& s, const ValueOf& value_of, int count, const TopCut& cut,
                           const Visit& visit) {
  std::uint32_t strict = 0;  // entries above the cut so far, and ties
  std::uint32_t ties = 0;
  const auto allowed = static_cast<std::uint32_t>(cut.ties);
  for (int first = 0; first < count; first += kCutThreads) {
    const int i = first + thread_index();
    const std::uint32_t bits = i < count ? float_bits(value_of(i)) : 0;
    const bool is_above = i < count && bits > cut.value;
    const bool is_tie = i < count && bits == cut.value;
    // Both counts in one word: a tile has at most 1024 of each.
    const std::uint32_t inclusive =
        warp_prefix_sum((is_above ? 1u : 0u) | (is_tie ? 1u << 16 : 0u));
    sync_block(kCutThreads);
    if (lane_index() == 31) s.warp_totals[warp_index()] = inclusive;
    sync_block(kCutThreads);
    std::uint32_t before = 0;
    std::uint32_t total = 0;
    for (int warp = 0; warp < kCutWarps; ++warp) {
      before += warp < warp_index() ? s.warp_totals[warp] : 0u;
      total += s.warp_totals[warp];
    }
    const std::uint32_t to_here = before + inclusive;
    const std::uint32_t strict_before = strict + (to_here & 0xffffu) - (is_above ? 1u : 0u);
    const std::uint32_t ties_before = ties + (to_here >> 16) - (is_tie ? 1u : 0u);
    if (is_above || (is_tie && ties_before < allowed)) {
      visit(static_cast<std::int32_t>(strict_before +
                                      (ties_before < allowed ? ties_before : allowed)),
            i);
    }
    strict += total & 0xffffu;
    ties += total >> 16;
  }
}

}  // namespace s2o::device
