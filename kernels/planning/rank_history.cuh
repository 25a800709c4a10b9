// Visiting order of every row (history.h): a counting sort by rounded score. Deterministic: no
// position depends on the order of threads.
//
// One block per row. First pass over the scores: a histogram in kRankBins equal steps between the
// best and the worst; its prefix sum gives each bin the depth at which it starts, hence its class.
// Second pass: tiles of kRankTile keys are split into the coarse classes. A thread owns
// neighbouring keys and its own counter per class, so that ranks need neither atomics nor votes; a
// tile leaves shared memory as one run per class. Last, the sharp class, then in shared memory as a
// whole, is sorted into the fine classes: lanes of equal class find each other by one vote per bit.
#pragma once

#include "kernels/planning/platform_planning.cuh"
#include "kernels/planning/s2o_args.h"

namespace s2o::device {

inline constexpr int kRankThreads = 512;
inline constexpr int kRankWarps = kRankThreads / 32;
inline constexpr int kRankItems = 16;  // neighbouring keys of a thread in a tile
inline constexpr int kRankTile = kRankThreads * kRankItems;
inline constexpr int kFineClassBits = 8;
static_assert(kFineClasses == 1 << kFineClassBits);
static_assert(kCoarseClasses == kRankWarps, "a warp counts and writes one class");
inline constexpr int kTokenBits = 24;  // an entry is a fine class and a token
inline constexpr std::uint32_t kTokenMask = (1u << kTokenBits) - 1u;

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

// Counters of a class, one per thread: padded so that both a warp's own counters and the counters
// of every 16th thread lie in different banks.
inline constexpr int kCounterStride = kRankThreads + 32;
S2O_HOST_DEVICE constexpr int counter_place(int thread) { return thread + thread / 32; }

struct SharedRank {
  union {
    struct {
      std::uint32_t staged[kRankTile];  // entries of a tile, by class
      // Keys of a class of each thread, then their places in `staged`.
      std::uint32_t counts[kCoarseClasses][kCounterStride];
    } tile;
    std::uint32_t sharp[kMaxSharpDepth];  // entries of the sharp class
  };
  union {
    // First the keys of each bin; then its fine class << 24 and the byte offset of the counters of
    // its coarse class.
    std::uint32_t histogram[kRankBins];
    std::uint32_t fine_counts[kRankWarps][kFineClasses];  // then next places in the order
  };
  std::uint32_t class_place[kCoarseClasses];  // next entry of the class in the row's order
  std::uint32_t class_count[kCoarseClasses];  // of the tile
  std::uint32_t num_sharp;
  std::uint32_t warp_sums[kRankWarps];
};

class RankHistory {
 public:
  S2O_DEVICE explicit RankHistory(const RankArgs& args)
      : s_(*reinterpret_cast<SharedRank*>(shared_memory())) {
    // Long rows first.
    const int segment = args.end_segment - 1 - block_index() / args.num_batch_lists;
    const int batch_list = block_index() % args.num_batch_lists;
    const int list = args.first_list + batch_list;
    length_ = static_cast<int>(args.shape.history_length(segment));
    order_length_ = static_cast<int>(args.shape.order_length(segment));
    sharp_ = static_cast<int>(sharp_depth(length_, order_length_));
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
    for (int first = 0; first < length_; first += kRankTile) split_tile(first);
    sort_sharp();
  }

 private:
  // Calls visit(element, score) for the eight scores of 16 bytes.
  template <class Visit>
  S2O_DEVICE static void for_each_half(const Words4& words, const Visit& visit) {
#pragma unroll
    for (int pair = 0; pair < 4; ++pair) {
      visit(2 * pair, unpack_low<Fp16>(words.word[pair]));
      visit(2 * pair + 1, unpack_high<Fp16>(words.word[pair]));
    }
  }

  S2O_DEVICE static std::uint32_t* word_at(std::uint32_t* words, std::uint32_t byte_offset) {
    return reinterpret_cast<std::uint32_t*>(reinterpret_cast<unsigned char*>(words) + byte_offset);
  }

  S2O_DEVICE void count_bins() {
    for (int bin = thread_index(); bin < kRankBins; bin += kRankThreads) s_.histogram[bin] = 0;
    sync_block(kRankThreads);
    const int vectors = length_ / 8;
#pragma unroll 4
    for (int i = thread_index(); i < vectors; i += kRankThreads) {
      for_each_half(load_global_16(scores_ + 8 * i), [this](int, float score) {
        atomic_count(word_at(s_.histogram, bins_(score)));
      });
    }
    for (int i = 8 * vectors + thread_index(); i < length_; i += kRankThreads) {
      atomic_count(word_at(s_.histogram, bins_(half_to_float(load_half_bits(scores_ + i)))));
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
    // Smallest depth of each class, as complements: a class without keys stays at the end.
    if (thread_index() < kCoarseClasses) {
      s_.class_place[thread_index()] = ~static_cast<std::uint32_t>(order_length_);
    }
    if (thread_index() == 0) s_.num_sharp = 0;
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
        const std::uint32_t end = depth + counts[i];
        const RankClass c = rank_class(depth, end, static_cast<std::uint32_t>(sharp_),
                                       static_cast<std::uint32_t>(order_length_));
        s_.histogram[first + i] = c.fine << kTokenBits | c.coarse * kCounterStride * 4;
        atomic_max(&s_.class_place[c.coarse], ~depth);
        if (c.coarse == 0) atomic_max(&s_.num_sharp, end);
      }
      depth += counts[i];
    }
    sync_block(kRankThreads);
    if (thread_index() < kCoarseClasses) {
      s_.class_place[thread_index()] = ~s_.class_place[thread_index()];
    }
  }

  S2O_DEVICE void split_tile(int first) {
    const int first_key = first + thread_index() * kRankItems;
    std::uint32_t* const counters = &s_.tile.counts[0][counter_place(thread_index())];
#pragma unroll
    for (int c = 0; c < kCoarseClasses; ++c) counters[c * kCounterStride] = 0;
    // Class, fine class and rank of each of this thread's keys.
    std::uint32_t ranked[kRankItems];
    if (first + kRankTile <= length_) {
      rank_keys<true>(first_key, counters, ranked);
    } else {
      rank_keys<false>(first_key, counters, ranked);
    }
    sync_block(kRankThreads);
    place_class();
    sync_block(kRankThreads);
#pragma unroll
    for (int i = 0; i < kRankItems; ++i) {
      if ((ranked[i] & 0xffffu) >= kDroppedClass * kCounterStride * 4) continue;
      const std::uint32_t place =
          *word_at(counters, ranked[i] & 0xffffu) + (ranked[i] >> 16 & 0xffu);
      s_.tile.staged[place] = (ranked[i] & ~kTokenMask) | static_cast<std::uint32_t>(first_key + i);
    }
    sync_block(kRankThreads);
    write_class();
    sync_block(kRankThreads);
  }

  // Only this thread touches its counters: neither atomics nor votes. Without kWhole, keys beyond
  // the row count as dropped.
  template <bool kWhole>
  S2O_DEVICE void rank_keys(int first_key, std::uint32_t* counters,
                            std::uint32_t (&ranked)[kRankItems]) {
    const int left = length_ - first_key;
    Words4 words[2] = {};
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      // Rows end inside their padding: 16 bytes that begin in the row can be read.
      if (kWhole || half * 8 < left) words[half] = load_global_16(scores_ + first_key + 8 * half);
    }
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      for_each_half(words[half], [&](int e, float score) {
        const int i = 8 * half + e;
        ranked[i] = 0xffffu;
        if (!kWhole && i >= left) return;
        const std::uint32_t found = *word_at(s_.histogram, bins_(score));
        std::uint32_t* const counter = word_at(counters, found & 0xffffu);
        const std::uint32_t rank = *counter;
        *counter = rank + 1;
        ranked[i] = found + (rank << 16);
      });
    }
  }

  // Each warp takes one class: from counts of threads to places in the tile. Lane l takes threads
  // 16 l .. 16 l + 15.
  S2O_DEVICE void place_class() {
    constexpr int kPerLane = kRankThreads / 32;
    std::uint32_t* const counts =
        &s_.tile.counts[warp_index()][counter_place(lane_index() * kPerLane)];
    std::uint32_t before[kPerLane];
    std::uint32_t own = 0;
#pragma unroll
    for (int r = 0; r < kPerLane; ++r) {
      before[r] = own;
      own += counts[r];
    }
    const std::uint32_t inclusive = warp_prefix_sum(own);
    if (lane_index() == 31) s_.class_count[warp_index()] = inclusive;
    sync_block(kRankThreads);
    const std::uint32_t start = class_start() + inclusive - own;
#pragma unroll
    for (int r = 0; r < kPerLane; ++r) counts[r] = start + before[r];
  }
  // First place of the warp's class in the tile.
  S2O_DEVICE std::uint32_t class_start() const {
    const int c = lane_index();
    std::uint32_t start = c < warp_index() ? s_.class_count[c] : 0u;
#pragma unroll
    for (int mask = 8; mask > 0; mask /= 2) start += shuffle_xor(start, mask);
    return shuffle_from(start, 0);
  }

  // Each warp appends the tile's keys of one class to the row's order. Entries of the sharp class
  // keep their fine class: sort_sharp reads them back.
  S2O_DEVICE void write_class() {
    const int c = warp_index();
    if (c == kDroppedClass) return;
    const std::uint32_t start = class_start();
    const std::uint32_t count = s_.class_count[c];
    const std::uint32_t place = s_.class_place[c];
    const std::uint32_t mask = c == 0 ? 0xffffffffu : kTokenMask;
    const std::uint32_t room = static_cast<std::uint32_t>(order_length_) - place;
    const std::uint32_t kept = count < room ? count : room;
    const std::uint32_t* const source = s_.tile.staged + start;
    std::int32_t* const target = order_ + place;
#pragma unroll 4
    for (std::uint32_t i = static_cast<std::uint32_t>(lane_index()); i < kept; i += 32) {
      target[i] = static_cast<std::int32_t>(source[i] & mask);
    }
    sync_warp();
    if (lane_index() == 0) s_.class_place[c] = place + kept;
  }

  S2O_DEVICE void sort_sharp() {
    const int count = static_cast<int>(s_.num_sharp);
    for (int i = thread_index(); i < count; i += kRankThreads) {
      s_.sharp[i] = static_cast<std::uint32_t>(order_[i]);
    }
    for (int i = thread_index(); i < kRankWarps * kFineClasses; i += kRankThreads) {
      (&s_.fine_counts[0][0])[i] = 0;
    }
    sync_block(kRankThreads);
    // Warps own neighbouring stretches, whole groups of 32 entries.
    const int stretch = ceil_div(ceil_div(count, 32), kRankWarps) * 32;
    const int begin = warp_index() * stretch;
    const int end = min_of(begin + stretch, count);
    std::uint32_t* const counts = s_.fine_counts[warp_index()];
    for (int i = begin + lane_index(); i < end; i += 32) {
      atomic_count(&counts[s_.sharp[i] >> kTokenBits]);
    }
    sync_block(kRankThreads);
    place_fine_classes();
    sync_block(kRankThreads);
    const std::uint32_t lower_lanes = (1u << lane_index()) - 1u;
    for (int first = begin; first < end; first += 32) {
      const int i = first + lane_index();
      const bool exists = i < end;
      const std::uint32_t entry = exists ? s_.sharp[i] : 0u;
      const std::uint32_t c = entry >> kTokenBits;
      const std::uint32_t existing = ballot(exists);
      const std::uint32_t peers =
          matching_lanes<kFineClassBits>(c) & (exists ? existing : ~existing);
      const std::uint32_t place = counts[c];
      sync_warp();  // every lane has read the place
      const int lower = count_bits(peers & lower_lanes);
      if (exists) {
        if (lower == 0) counts[c] = place + static_cast<std::uint32_t>(count_bits(peers));
        order_[place + static_cast<std::uint32_t>(lower)] =
            static_cast<std::int32_t>(entry & kTokenMask);
      }
      sync_warp();
    }
  }

  // From counts of each warp to places in the order.
  S2O_DEVICE void place_fine_classes() {
    const int c = thread_index();
    std::uint32_t total = 0;
    if (c < kFineClasses) {
#pragma unroll
      for (int warp = 0; warp < kRankWarps; ++warp) {
        const std::uint32_t count = s_.fine_counts[warp][c];
        s_.fine_counts[warp][c] = total;
        total += count;
      }
    }
    const std::uint32_t start = block_prefix_sum(total);
    if (c < kFineClasses) {
#pragma unroll
      for (int warp = 0; warp < kRankWarps; ++warp) s_.fine_counts[warp][c] += start;
    }
  }

  SharedRank& s_;
  int length_;
  int order_length_;
  int sharp_;
  const std::uint16_t* scores_;
  std::int32_t* order_;
  ScoreBins bins_;
};

}  // namespace s2o::device
