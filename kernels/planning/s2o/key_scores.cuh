// Scores of the history of every row (KeyScoreArgs), rounded to fp16. Keys are stored in shared
// memory in an order that gives each lane 8 neighbouring keys of a row after the product, so that
// scores leave as 16-byte stores.
#pragma once

#include "kernels/planning/s2o/mean_product.cuh"

namespace s2o::device {

struct ScoreRows {
  using Args = KeyScoreArgs;
  static constexpr const char* kName = "planning: key scores";
  static constexpr bool kNeighbours = true;

  S2O_DEVICE static int list_of(const Args& args, int kv_head, int row) {
    return kv_head * args.shape.lists_per_kv_head + row % args.shape.lists_per_kv_head;
  }

  S2O_DEVICE void describe(int r, const Args& args, int kv_head, int row) {
    largest_[r] = kMinusInfinityPair;
    smallest_[r] = kInfinityPair;
    const std::int64_t place =
        args.batch.place(args.shape, list_of(args, kv_head, row),
                         load_global(args.row_offsets + row / args.shape.lists_per_kv_head));
    target_[r] = static_cast<std::uint32_t>(place / 8);
  }

  // Keys beyond `end` go to the padding of the row. A score that is not finite, or too large for
  // fp16, ends up in the range of the row.
  template <bool kWhole, class Score>
  S2O_DEVICE void store(int r, const Args& args, int first_key, int end, const Score& score) {
    const int key = first_key + lane_index() % 4 * 8;
    const int count = end - key;
    if (!kWhole && count <= 0) return;
    Words4 words;
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const float first = score(0, 0);
      words.word[j] = pack_pair<Fp16>(kWhole || 2 * j < count ? score(j, 0) : first,
                                      kWhole || 2 * j + 1 < count ? score(j, 1) : first);
      largest_[r] = max_pairs(largest_[r], words.word[j]);
      smallest_[r] = min_pairs(smallest_[r], words.word[j]);
    }
    const std::uint32_t place = target_[r] + static_cast<std::uint32_t>(key) / 8;
    store_global_16(args.scores + std::uint64_t{place} * 8, words);
  }

  S2O_DEVICE void publish(int r, const Args& args, int kv_head, int row) const {
    std::uint32_t largest = largest_[r];
    std::uint32_t smallest = smallest_[r];
#pragma unroll
    for (int mask = 1; mask < 4; mask *= 2) {
      largest = max_pairs(largest, shuffle_xor(largest, mask));
      smallest = min_pairs(smallest, shuffle_xor(smallest, mask));
    }
    const bool no_key = largest == kMinusInfinityPair && smallest == kInfinityPair;
    if (lane_index() % 4 != 0 || no_key) return;
    const float high = unpack_low<Fp16>(max_pairs(largest, largest >> 16));
    const float low = unpack_low<Fp16>(min_pairs(smallest, smallest >> 16));
    const int segment = row / args.shape.lists_per_kv_head;
    const auto id = list_of(args, kv_head, row) * args.shape.num_segments + segment;
    ScoreRange* const range = args.ranges + id;
    atomic_max(&range->largest, ordered_bits(high));
    atomic_max(&range->smallest_complement, ~ordered_bits(low));
    const bool finite = absolute(high) < -kNegativeInfinity && absolute(low) < -kNegativeInfinity;
    if (!finite) atomic_max(args.bad_row, ~static_cast<std::uint32_t>(id));
  }

 private:
  static constexpr std::uint32_t kMinusInfinityPair = 0xfc00fc00u;
  static constexpr std::uint32_t kInfinityPair = 0x7c007c00u;
  std::uint32_t largest_[4];  // pairs of fp16
  std::uint32_t smallest_[4];
  std::uint32_t target_[4];  // in 16 bytes: rows begin at multiples of 64 scores
};

template <class Element, int kHeadDim>
using KeyScoresKernel = MeanProductKernel<Element, kHeadDim, ScoreRows>;

}  // namespace s2o::device
