// Visiting order of every row (history.h): a counting sort by rounded score. Deterministic: no
// position depends on the order of threads.
//
// One block per row. First pass over the scores: a histogram in kRankBins equal steps between the
// best and the worst; its prefix sum gives each bin the depth at which it starts, hence its class.
// Second pass: the keys are split into the coarse classes, a warp 256 at a time. A lane owns eight
// neighbouring keys and counts them in one register, four bits a class; the prefix sum over lanes
// runs on eight bits a class, four classes a register. The warp's keys leave by class through
// shared memory, and warps tell each other only how many they have, one barrier for all of them.
// Last, the sharp class, which stayed in shared memory, is sorted into the fine classes: lanes of
// equal class find each other by one vote per bit.
#pragma once

#include "kernels/planning/launch.cuh"
#include "kernels/planning/s2o/rank_classes.cuh"

namespace s2o::device {

struct SharedRank {
  RankEntry sharp[kMaxSharpDepth];  // of the sharp class
  union {
    RankEntry staged[kRankWarps][kTileParts][kWarpKeys];  // of a tile, parts by class
    std::uint16_t sorted[kMaxSharpDepth];                 // places in `sharp`
  };
  union {
    alignas(16) std::uint32_t histogram[kRankBins];          // keys of each bin, then its BinClass
    std::uint32_t fine_counts[kRankWarps][1 << kClassBits];  // then next places in the order
  };
  std::uint16_t totals[2][kRankWarps][kCoarseClasses];  // keys of a tile; tiles take turns
  std::uint32_t class_place[kCoarseClasses];            // first entry of the class in the order
  std::uint32_t num_sharp;
  std::uint32_t warp_sums[kRankWarps];
};
static_assert(kMaxSharpDepth <= 1 << 16);
// Two blocks of a multiprocessor; each takes 1 KB more.
static_assert(2 * (sizeof(SharedRank) + 1024) <= 228 * 1024);

class RankHistory {
 public:
  S2O_DEVICE explicit RankHistory(const RankArgs& args)
      : s_(*reinterpret_cast<SharedRank*>(shared_memory())) {
    const auto [list, segment] = args.batch.row(args.shape, block_index());
    length_ = static_cast<int>(args.shape.history_length(segment));
    order_length_ = static_cast<int>(args.shape.order_length(segment));
    sharp_ = static_cast<int>(sharp_depth(length_, order_length_));
    scores_ =
        args.scores + args.batch.place(args.shape, list, load_global(args.row_offsets + segment));
    order_ =
        opaque(args.order + list * args.order_per_list + load_global(args.order_offsets + segment));
    const std::uint32_t* range = &args.ranges[list * args.shape.num_segments + segment].largest;
    bins_ = score_bins({load_global(range), load_global(range + 1)});
  }

  S2O_DEVICE void run() {
    if (length_ == 0) return;
    count_bins();
    choose_classes();
    split();
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
    static_assert(kBinsPerThread % 4 == 0);
    // Smallest depth of each class, as complements: a class without keys stays at the end.
    if (thread_index() < kCoarseClasses) {
      s_.class_place[thread_index()] = ~static_cast<std::uint32_t>(order_length_);
    }
    if (thread_index() == 0) s_.num_sharp = 0;
    std::uint32_t* const bins = &s_.histogram[thread_index() * kBinsPerThread];
    Words4 words[kBinsPerThread / 4];
    std::uint32_t total = 0;
#pragma unroll
    for (int i = 0; i < kBinsPerThread; ++i) {
      if (i % 4 == 0) words[i / 4] = load_shared_16(shared_address(bins + i));
      total += words[i / 4].word[i % 4];
    }
    std::uint32_t depth = block_prefix_sum(total);
    const RankClasses classes(static_cast<std::uint32_t>(sharp_),
                              static_cast<std::uint32_t>(order_length_));
    // Depths only grow: the first bin of a class in this thread speaks for the others.
    std::uint32_t last_class = kCoarseClasses;
    std::uint32_t sharp_end = 0;
#pragma unroll
    for (int i = 0; i < kBinsPerThread; ++i) {
      const std::uint32_t count = words[i / 4].word[i % 4];
      const std::uint32_t end = depth + count;
      const std::uint32_t code = classes(depth, end);
      const std::uint32_t c = (code > kFineClasses ? code : kFineClasses) - kFineClasses;
      words[i / 4].word[i % 4] = BinClass::of(code).word;
      if (count > 0 && c != last_class) {
        atomic_max(&s_.class_place[c], ~depth);
        last_class = c;
      }
      if (count > 0 && c == 0) sharp_end = end;
      depth = end;
      if (i % 4 == 3) store_shared_16(bins + i - 3, words[i / 4]);
    }
    if (sharp_end > 0) atomic_max(&s_.num_sharp, sharp_end);
    sync_block(kRankThreads);
  }

  S2O_DEVICE void split() {
    const std::uint32_t c = lane_index() % kCoarseClasses;
    std::uint32_t class_place = ~s_.class_place[c];  // where the tile's keys of class c go
    const int own = warp_index() * kTileParts * kWarpKeys + lane_index() * kRankItems;
    Words4 words[kTileParts];
    load_parts(own, words);
    for (int first = 0; first < length_; first += kRankTile) {
      const int first_key = first + own;
      Words4 next[kTileParts];
      load_parts(first_key + kRankTile, next);
      if (first + kRankTile <= length_) {
        split_tile<true>(words, first_key, class_place);
      } else {
        split_tile<false>(words, first_key, class_place);
      }
#pragma unroll
      for (int part = 0; part < kTileParts; ++part) words[part] = next[part];
    }
  }
  S2O_DEVICE void load_parts(int first_key, Words4 (&words)[kTileParts]) const {
#pragma unroll
    for (int part = 0; part < kTileParts; ++part) {
      words[part] = load_keys(first_key + part * kWarpKeys);
    }
  }
  // Rows end inside their padding: 16 bytes that begin in the row can be read.
  S2O_DEVICE Words4 load_keys(int first_key) const {
    return first_key < length_ ? load_global_16(scores_ + first_key) : Words4{};
  }

  // Keys of a class in a part, and its first place in `staged`. Lane l speaks for class
  // l % kCoarseClasses.
  struct ClassRun {
    std::uint32_t count;
    std::uint32_t start;
  };

  template <bool kWhole>
  S2O_DEVICE void split_tile(const Words4 (&words)[kTileParts], int first_key,
                             std::uint32_t& class_place) {
    ClassRun runs[kTileParts];
    std::uint32_t count = 0;
#pragma unroll
    for (int part = 0; part < kTileParts; ++part) {
      runs[part] = stage_part<kWhole>(words[part], first_key + part * kWarpKeys, part);
      count += runs[part].count;
    }
    std::uint32_t place = append(count, first_key, class_place);
    const int num_keys = length_ - (first_key - lane_index() * kRankItems);
#pragma unroll
    for (int part = 0; part < kTileParts; ++part) {
      const RankEntry* const staged = s_.staged[warp_index()][part];
      write_sharp(staged, static_cast<int>(shuffle_from(runs[part].count, 0)),
                  shuffle_from(place, 0));
      write_staged<kWhole>(staged, place - runs[part].start, num_keys - part * kWarpKeys);
      place += runs[part].count;
    }
    sync_warp();  // all have read what the next tile overwrites
  }

  // Without kWhole, keys beyond the row have no class.
  template <bool kWhole>
  S2O_DEVICE ClassRun stage_part(const Words4& words, int first_key, int part) {
    BinClass ranked[kRankItems];
    std::uint32_t counts = 0;  // four bits a class
    for_each_half(words, [&](int i, float score) {
      if (!kWhole && first_key + i >= length_) return;
      const BinClass found{*word_at(s_.histogram, bins_(score))};
      ranked[i] = found.with_rank(shift_right_wrapped(counts, found.shift()) & 15u);
      counts += shift_left_wrapped(1u, found.shift());
    });
    const ClassBytes own{counts & 0x0f0f0f0fu, counts >> 4 & 0x0f0f0f0fu};
    const ClassBytes before = own.prefix_sum();
    const ClassBytes last_before = before.from_lane(31);
    const ClassBytes last_own = own.from_lane(31);
    const ClassBytes starts = (last_before + last_own).starts();
    const ClassBytes places = starts + before;
    const auto staged =  // bytes
        static_cast<std::uint32_t>((warp_index() * kTileParts + part) * kWarpKeys * 4);
#pragma unroll
    for (int i = 0; i < kRankItems; ++i) {
      if (!kWhole && first_key + i >= length_) break;
      *word_at(&s_.staged[0][0][0].word,
               (ranked[i].place(places) << 2 & (4 * kWarpKeys - 4)) | staged) =
          ranked[i].entry(static_cast<std::uint32_t>(first_key + i)).word;
    }
    const std::uint32_t selector = ClassBytes::selector(lane_index() % kCoarseClasses);
    return {last_before[selector] + last_own[selector], starts[selector]};
  }

  // Where the warp's `count` keys of the lane's class go.
  // Moves class_place past the keys of all warps.
  S2O_DEVICE std::uint32_t append(std::uint32_t count, int first_key, std::uint32_t& class_place) {
    auto& totals = s_.totals[first_key / kRankTile % 2];
    const int c = lane_index() % kCoarseClasses;
    if (lane_index() < kCoarseClasses) totals[warp_index()][c] = static_cast<std::uint16_t>(count);
    sync_block(kRankThreads);
    constexpr int kParts = 32 / kCoarseClasses;
    constexpr int kWarpsPerPart = kRankWarps / kParts;
    std::uint32_t all = 0;
    std::uint32_t before = 0;
#pragma unroll
    for (int i = 0; i < kWarpsPerPart; ++i) {
      const int warp = lane_index() / kCoarseClasses * kWarpsPerPart + i;
      const std::uint32_t of_warp = totals[warp][c];
      all += of_warp;
      if (warp < warp_index()) before += of_warp;
    }
#pragma unroll
    for (int mask = kCoarseClasses; mask < 32; mask *= 2) {
      all += shuffle_xor(all, mask);
      before += shuffle_xor(before, mask);
    }
    const std::uint32_t place = class_place + before;
    class_place += all;
    return place;
  }

  // A part begins with its keys of the sharp class.
  S2O_DEVICE void write_sharp(const RankEntry* staged, int count, std::uint32_t place) {
#pragma unroll 1  // most often once or twice
    for (int i = lane_index(); i < count; i += 32) {
      s_.sharp[place + static_cast<std::uint32_t>(i)] = staged[i];
    }
  }
  // The others. `offset` of lane c: from a place in `staged` to that in the order, for class c.
  template <bool kWhole>
  S2O_DEVICE void write_staged(const RankEntry* staged, std::uint32_t offset, int num_keys) {
    static_assert(kFineClasses % 32 + kCoarseClasses == 32, "lane code % 32 speaks for the class");
    RankEntry entries[kRankItems];
    std::uint32_t targets[kRankItems];
#pragma unroll
    for (int i = 0; i < kRankItems; ++i) {
      const int place = lane_index() + 32 * i;
      entries[i] = kWhole || place < num_keys ? staged[place] : RankEntry{0u};
    }
#pragma unroll
    for (int i = 0; i < kRankItems; ++i) {
      targets[i] = shuffle_from(offset, static_cast<int>(entries[i].key_class())) +
                   static_cast<std::uint32_t>(lane_index() + 32 * i);
    }
#pragma unroll
    for (int i = 0; i < kRankItems; ++i) {
      if (!entries[i].is_sharp() && targets[i] < static_cast<std::uint32_t>(order_length_)) {
        store_global(order_ + targets[i], entries[i].token());
      }
    }
  }

  S2O_DEVICE void sort_sharp() {
    const int count = static_cast<int>(s_.num_sharp);
    sync_block(kRankThreads);  // the classes of bins are no longer needed
    for (int i = thread_index(); i < kRankWarps << kClassBits; i += kRankThreads) {
      (&s_.fine_counts[0][0])[i] = 0;
    }
    sync_block(kRankThreads);
    // Warps own neighbouring stretches, whole groups of 32 entries.
    const int stretch = ceil_div(ceil_div(count, 32), kRankWarps) * 32;
    const int begin = warp_index() * stretch;
    const int end = min_of(begin + stretch, count);
    std::uint32_t* const counts = s_.fine_counts[warp_index()];
    for (int i = begin + lane_index(); i < end; i += 32) {
      atomic_count(&counts[s_.sharp[i].key_class()]);
    }
    sync_block(kRankThreads);
    place_fine_classes();
    sync_block(kRankThreads);
    const std::uint32_t lower_lanes = (1u << lane_index()) - 1u;
    for (int first = begin; first < end; first += 32) {
      const int i = first + lane_index();
      const bool exists = i < end;
      const RankEntry entry = exists ? s_.sharp[i] : RankEntry{0u};
      const std::uint32_t c = entry.key_class();
      const std::uint32_t existing = ballot(exists);
      const std::uint32_t peers = matching_lanes<kClassBits>(c) & (exists ? existing : ~existing);
      const std::uint32_t place = counts[c];
      sync_warp();  // every lane has read the place
      const int lower = count_bits(peers & lower_lanes);
      if (exists) {
        if (lower == 0) counts[c] = place + static_cast<std::uint32_t>(count_bits(peers));
        s_.sorted[place + static_cast<std::uint32_t>(lower)] = static_cast<std::uint16_t>(i);
      }
      sync_warp();
    }
    sync_block(kRankThreads);
    // Scattered stores of single tokens would cost more than all of the above.
#pragma unroll 4
    for (int i = thread_index(); i < count; i += kRankThreads) {
      store_global(order_ + i, s_.sharp[s_.sorted[i]].token());
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

struct RankHistoryKernel {
  static constexpr const char* kName = "planning: rank history";
  static constexpr int kThreads = kRankThreads;
  static constexpr int kMinBlocks = 2;
  static Grid grid(const RankArgs& args) {
    return {.blocks = args.batch.num_rows(args.shape), .shared_bytes = sizeof(SharedRank)};
  }
  S2O_DEVICE static void run(const RankArgs& args) { RankHistory(args).run(); }
};

}  // namespace s2o::device
