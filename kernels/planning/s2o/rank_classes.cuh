// What ranking a history (rank_history.cuh) makes of single keys: bins of scores, entries, and
// counts of classes in registers.
#pragma once

#include "kernels/planning/s2o/ops.h"
#include "kernels/planning/shared/platform_planning.cuh"

namespace s2o::device {

inline constexpr int kRankThreads = 512;
inline constexpr int kRankWarps = kRankThreads / 32;
inline constexpr int kRankItems = 8;  // neighbouring keys of a lane in a part
inline constexpr int kWarpKeys = 32 * kRankItems;
inline constexpr int kTileParts = 2;  // of a warp between two barriers
inline constexpr int kRankTile = kTileParts * kRankWarps * kWarpKeys;
inline constexpr int kClassBits = 8;
static_assert(kCoarseClasses == 8, "four bits of a 32-bit counter each");
static_assert(kFineClasses + kCoarseClasses <= 1 << kClassBits);

// Classes of a warp's keys are counted in two registers, a byte each: even classes, odd classes.
// Sums of all keys of a warp reach 256, which spills into the next byte; but then the classes of
// that byte and of those above it in either register have no keys, and nobody asks for them.
struct ClassBytes {
  std::uint32_t even = 0;
  std::uint32_t odd = 0;

  // What finds the byte of a class.
  S2O_DEVICE static std::uint32_t selector(std::uint32_t c) { return c >> 1 | (c & 1u) << 2; }
  S2O_DEVICE std::uint32_t operator[](std::uint32_t selector) const {
    return select_byte(even, odd, selector) & 0xffu;
  }
  S2O_DEVICE ClassBytes operator+(const ClassBytes& other) const {
    return {even + other.even, odd + other.odd};
  }
  S2O_DEVICE ClassBytes from_lane(int lane) const {
    return {shuffle_from(even, lane), shuffle_from(odd, lane)};
  }
  // Sums of the classes before each.
  S2O_DEVICE ClassBytes starts() const {
    const std::uint32_t pairs = (even + odd) * 0x01010100u;
    return {pairs, pairs + even};
  }
  // Sums over the lanes before this one.
  S2O_DEVICE ClassBytes prefix_sum() const {
    ClassBytes sum = *this;
#pragma unroll
    for (int delta = 1; delta < 32; delta *= 2) {
      sum = {plus_lane_below(sum.even, delta), plus_lane_below(sum.odd, delta)};
    }
    return {sum.even - even, sum.odd - odd};
  }
};

// A key and its class, as they are sorted.
struct RankEntry {
  static constexpr int kTokenBits = 24;
  static constexpr std::uint32_t kTokenMask = (1u << kTokenBits) - 1u;

  std::uint32_t word;  // class << kTokenBits | token

  S2O_DEVICE std::uint32_t key_class() const { return word >> kTokenBits; }
  S2O_DEVICE std::int32_t token() const { return static_cast<std::int32_t>(word & kTokenMask); }
  S2O_DEVICE bool is_sharp() const { return word < (kFineClasses + 1u) << kTokenBits; }
};

// Class of the keys of a bin, and where they are counted. Bytes of the word, lowest first:
// selector of the count in ClassBytes; place of the count in a register of four bits a class; room
// for a key's rank among those of its lane and class; class.
struct BinClass {
  std::uint32_t word;

  S2O_DEVICE static BinClass of(std::uint32_t key_class) {
    const std::uint32_t coarse =
        (key_class > kFineClasses ? key_class : kFineClasses) - kFineClasses;
    return {key_class << RankEntry::kTokenBits | 4 * coarse << 8 | ClassBytes::selector(coarse)};
  }
  // For shifts that wrap: higher bits do not matter.
  S2O_DEVICE std::uint32_t shift() const { return word >> 8; }
  S2O_DEVICE BinClass with_rank(std::uint32_t rank) const { return {with_third_byte(word, rank)}; }
  // Of a key whose class has `before` keys in lanes before; only the low byte counts.
  S2O_DEVICE std::uint32_t place(const ClassBytes& before) const {
    return select_byte(before.even, before.odd, word) + (word >> 16);
  }
  S2O_DEVICE RankEntry entry(std::uint32_t token) const {
    return {(word & ~RankEntry::kTokenMask) | token};
  }
};

// Bin of a score, as the byte offset of a 32-bit word: 0 is the best. Never falls as the score
// falls. One multiply-add in units of a quarter bin: adding 2^23 leaves the integer in the low
// bits.
struct ScoreBins {
  float steps;   // minus quarter bins per unit of score
  float offset;  // 2^23 + quarter bins of the best score, an integer

  S2O_DEVICE std::uint32_t operator()(float score) const {
    return float_bits(fused(score, steps, offset)) & (4 * kRankBins - 4);
  }
};
S2O_DEVICE ScoreBins score_bins(const ScoreRange& range) {
  // Scores were rounded to fp16 and clamped; so are their bounds.
  constexpr float kBound = 65504.0f;
  const float largest = max_of(min_of(ordered_float(range.largest), kBound), -kBound);
  const float smallest = max_of(min_of(ordered_float(~range.smallest_complement), kBound), -kBound);
  const std::uint32_t packed = pack_pair<Fp16>(largest, smallest);
  const float top = unpack_low<Fp16>(packed);
  const float span = top - unpack_high<Fp16>(packed);
  // The offset is rounded to an integer: one bin is spared at either end.
  const float steps = span > 0.0f ? 4.0f * static_cast<float>(kRankBins - 2) / span : 0.0f;
  return {-steps, fused(top, steps, 8388608.0f + 4.0f)};
}

}  // namespace s2o::device
