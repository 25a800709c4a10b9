// Visiting order of every row (history.h): a counting sort into kRankClasses classes, best first,
// keys of a class in their order. Deterministic: no position depends on the order of threads.
//
// One block per row. First pass: histogram of the scores in kRankBins equal steps between the best
// and the worst; its prefix sum gives each bin the depth at which it starts, hence its class
// (rank_class). Second pass: tiles of kRankTile keys are sorted by class in shared memory and leave
// as runs of neighbouring entries. Inside a warp, lanes of equal class find each other by one vote
// per bit of the class; warps own neighbouring stretches of the tile and count apart.
#pragma once

#include "kernels/planning/platform_planning.cuh"
#include "kernels/planning/s2o_args.h"

namespace s2o::device {

inline constexpr int kRankThreads = 512;
inline constexpr int kRankWarps = kRankThreads / 32;
inline constexpr int kRankItems = 16;  // keys of a thread in a tile
inline constexpr int kRankTile = kRankThreads * kRankItems;
inline constexpr int kRankClassBits = 8;
static_assert(kRankClasses == 1 << kRankClassBits);
inline constexpr int kRankTokenBits = 24;  // a staged entry is a class and a token

// Bin of a score: 0 is the best. Never falls as the score falls.
struct ScoreBins {
  float largest;
  float steps;  // bins per unit of score

  S2O_DEVICE int operator()(std::uint16_t half) const {
    // Adding 2^23 leaves the rounded product in the low bits.
    constexpr float kMagic = 8388608.0f;
    const float x = fused(subtract(largest, half_to_float(half)), steps, kMagic);
    return static_cast<int>(float_bits(x) & (2 * kRankBins - 1));
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
  return {top, span > 0.0f ? static_cast<float>(kRankBins - 1) / span : 0.0f};
}

struct SharedRank {
  std::uint32_t staged[kRankTile];
  std::uint32_t counts[kRankWarps][kRankClasses];  // of a tile; then offsets into it
  std::uint32_t histogram[kRankBins];
  std::uint8_t class_of_bin[kRankBins];
  std::uint32_t class_place[kRankClasses];  // next entry of the class in the row's order
  std::uint32_t class_shift[kRankClasses];  // from places in the tile to entries of the order
  std::uint32_t warp_sums[kRankWarps];
};

class RankHistory {
 public:
  S2O_DEVICE explicit RankHistory(const RankArgs& args)
      : args_(args), s_(*reinterpret_cast<SharedRank*>(shared_memory())) {
    // Long rows first.
    const int segment = args.end_segment - 1 - block_index() / args.num_batch_lists;
    const int batch_list = block_index() % args.num_batch_lists;
    const int list = args.first_list + batch_list;
    length_ = static_cast<int>(args.shape.history_length(segment));
    order_length_ = static_cast<int>(args.shape.order_length(segment));
    scores_ = args.scores + batch_list * args.scores_per_list +
              load_global(args.score_offsets + segment) - args.first_offset;
    order_ = args.order + list * args.order_per_list + load_global(args.order_offsets + segment);
    const std::uint32_t* range = &args.ranges[list * args.shape.num_segments + segment].largest;
    bins_ = score_bins({load_global(range), load_global(range + 1)});
  }

  S2O_DEVICE void run() {
    if (length_ == 0) return;
    count_bins();
    choose_classes();
    for (int first = 0; first < length_; first += kRankTile) sort_tile(first);
  }

 private:
  S2O_DEVICE void count_bins() {
    for (int bin = thread_index(); bin < kRankBins; bin += kRankThreads) s_.histogram[bin] = 0;
    sync_block(kRankThreads);
    const int vectors = length_ / 8;
#pragma unroll 4
    for (int i = thread_index(); i < vectors; i += kRankThreads) {
      const Words4 words = load_global_16(scores_ + 8 * i);
#pragma unroll
      for (int e = 0; e < 8; ++e) {
        const std::uint32_t word = words.word[e / 2];
        const auto half = static_cast<std::uint16_t>(e % 2 == 0 ? word & 0xffffu : word >> 16);
        atomic_count(&s_.histogram[bins_(half)]);
      }
    }
    for (int i = 8 * vectors + thread_index(); i < length_; i += kRankThreads) {
      atomic_count(&s_.histogram[bins_(load_half_bits(scores_ + i))]);
    }
    sync_block(kRankThreads);
  }

  // Exclusive prefix sum over the threads of the block; ends with all threads past it.
  S2O_DEVICE std::uint32_t block_prefix_sum(std::uint32_t value) {
    const std::uint32_t inclusive = warp_prefix_sum(value);
    if (lane_index() == 31) s_.warp_sums[warp_index()] = inclusive;
    sync_block(kRankThreads);
    std::uint32_t before = 0;
    for (int warp = 0; warp < kRankWarps; ++warp) {
      const std::uint32_t sum = s_.warp_sums[warp];
      if (warp < warp_index()) before += sum;
    }
    sync_block(kRankThreads);
    return before + inclusive - value;
  }

  S2O_DEVICE void choose_classes() {
    constexpr int kBinsPerThread = kRankBins / kRankThreads;
    // Smallest depth of each class, as complements: dropped classes stay at the end of the order.
    for (int c = thread_index(); c < kRankClasses; c += kRankThreads) {
      s_.class_place[c] = ~static_cast<std::uint32_t>(order_length_);
    }
    std::uint32_t counts[kBinsPerThread];
    std::uint32_t total = 0;
    const int first = thread_index() * kBinsPerThread;
#pragma unroll
    for (int i = 0; i < kBinsPerThread; ++i) {
      counts[i] = s_.histogram[first + i];
      total += counts[i];
    }
    std::uint32_t depth = block_prefix_sum(total);
#pragma unroll
    for (int i = 0; i < kBinsPerThread; ++i) {
      if (counts[i] > 0) {
        const int c = rank_class(depth, order_length_, args_.sharp_depth);
        s_.class_of_bin[first + i] = static_cast<std::uint8_t>(c);
        atomic_max(&s_.class_place[c], ~depth);
      }
      depth += counts[i];
    }
    sync_block(kRankThreads);
    for (int c = thread_index(); c < kRankClasses; c += kRankThreads) {
      s_.class_place[c] = ~s_.class_place[c];
    }
    sync_block(kRankThreads);
  }

  S2O_DEVICE void sort_tile(int first) {
    const int count = min_of(kRankTile, length_ - first);
    for (int i = thread_index(); i < kRankWarps * kRankClasses; i += kRankThreads) {
      (&s_.counts[0][0])[i] = 0;
    }
    sync_block(kRankThreads);

    // Class and place among the warp's keys of that class, for each of this thread's keys.
    std::uint32_t ranked[kRankItems];
    const int first_of_warp = warp_index() * (32 * kRankItems);
    std::uint32_t* const counts = s_.counts[warp_index()];
    const std::uint32_t lower_lanes = (1u << lane_index()) - 1u;
    std::uint16_t half[kRankItems];
#pragma unroll
    for (int i = 0; i < kRankItems; ++i) {
      const int item = first_of_warp + i * 32 + lane_index();
      half[i] = item < count ? load_half_bits(scores_ + first + item) : std::uint16_t{0};
    }
#pragma unroll
    for (int i = 0; i < kRankItems; ++i) {
      const int item = first_of_warp + i * 32 + lane_index();
      const bool kept = item < count;
      const std::uint32_t c = kept ? s_.class_of_bin[bins_(half[i])] : kDroppedClass;
      std::uint32_t peers = ballot(kept);
      if (!kept) peers = ~peers;
#pragma unroll
      for (int bit = 0; bit < kRankClassBits; ++bit) {
        const bool set = (c >> bit & 1u) != 0;
        const std::uint32_t vote = ballot(set);
        peers &= set ? vote : ~vote;
      }
      const std::uint32_t before = counts[c];
      sync_warp();  // every lane has read the count
      const int lower = count_bits(peers & lower_lanes);
      if (lower == 0 && kept) counts[c] = before + static_cast<std::uint32_t>(count_bits(peers));
      sync_warp();
      ranked[i] = c << 16 | (before + static_cast<std::uint32_t>(lower));
    }
    sync_block(kRankThreads);

    place_classes();

#pragma unroll
    for (int i = 0; i < kRankItems; ++i) {
      const int item = first_of_warp + i * 32 + lane_index();
      if (item >= count) continue;
      const std::uint32_t c = ranked[i] >> 16;
      s_.staged[counts[c] + (ranked[i] & 0xffffu)] =
          c << kRankTokenBits | static_cast<std::uint32_t>(first + item);
    }
    sync_block(kRankThreads);

    for (int i = thread_index(); i < count; i += kRankThreads) {
      const std::uint32_t entry = s_.staged[i];
      const std::uint32_t place =
          s_.class_shift[entry >> kRankTokenBits] + static_cast<std::uint32_t>(i);
      if (place < static_cast<std::uint32_t>(order_length_)) {
        store_streaming(order_ + place,
                        static_cast<std::int32_t>(entry & ((1u << kRankTokenBits) - 1u)));
      }
    }
    sync_block(kRankThreads);  // before the next tile writes counts, staged and class_shift
  }

  // From counts of each warp to offsets into the sorted tile; moves the places of the classes on.
  S2O_DEVICE void place_classes() {
    const int c = thread_index();
    std::uint32_t total = 0;
    if (c < kRankClasses) {
#pragma unroll
      for (int warp = 0; warp < kRankWarps; ++warp) {
        const std::uint32_t count = s_.counts[warp][c];
        s_.counts[warp][c] = total;
        total += count;
      }
    }
    const std::uint32_t start = block_prefix_sum(total);
    if (c < kRankClasses) {
#pragma unroll
      for (int warp = 0; warp < kRankWarps; ++warp) s_.counts[warp][c] += start;
      const std::uint32_t place = s_.class_place[c];
      s_.class_shift[c] = place - start;
      s_.class_place[c] = place + total;
    }
    sync_block(kRankThreads);
  }

  const RankArgs& args_;
  SharedRank& s_;
  int length_;
  int order_length_;
  const std::uint16_t* scores_;
  std::int32_t* order_;
  ScoreBins bins_;
};

}  // namespace s2o::device
