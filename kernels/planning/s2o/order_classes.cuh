// Visiting order of every row from the classes of its keys (MeanClassArgs), where orders list a
// part of their histories (ClassOrderArgs): one block a row. Deterministic: places depend on
// classes and keys only.
//
// The bytes of a row are read once, 1,024 keys of a warp at a time; warps take turns, for listed
// keys are often neighbours. Lanes write which of their 32 keys are listed into a pool in shared
// memory; then the warp adds their classes and counts them, 32 at a time. The counts become places
// in the order; each warp goes through its keys of the pool again, and lanes of equal class find
// each other by one vote per bit. What is sorted are places in the pool, two bytes each: single
// tokens stored far apart in memory would cost more than all of that.
//
// The pool holds a fourth more than an order is meant to (kCutAim). Of a row whose sample was that
// wrong, keys are found a second time, and sorted in the memory of the pool.
#pragma once

#include "kernels/planning/launch.cuh"
#include "kernels/planning/s2o/mean_class.cuh"
#include "kernels/planning/s2o/select_classes.cuh"

namespace s2o::device {

inline constexpr int kOrderWarps = 16;
inline constexpr int kOrderThreads = kOrderWarps * 32;
inline constexpr int kLaneKeys = 32;
inline constexpr int kOrderTile = 32 * kLaneKeys;  // keys of a warp at a time
inline constexpr int kWarpTiles = static_cast<int>(kClassOrderHistory) / kOrderTile / kOrderWarps;
inline constexpr int kPoolKeys = 18176;
static_assert(kMeanClasses == kRowClasses && kMeanClasses <= 128);
static_assert(kPoolKeys >= kClassOrderRoom && kPoolKeys <= 1 << 16);

// Listed keys of a tile.
struct PoolRun {
  std::uint16_t begin;  // in the pool, where they fit
  std::uint16_t count;
};

struct SharedOrder {
  ClassCounts<kOrderWarps> classes;
  union {
    alignas(16) unsigned char tiles[kOrderWarps][kOrderTile];  // classes of a warp's tile
    std::uint16_t sorted[kClassOrderRoom];                     // places in the pool
    std::uint16_t staged[kOrderWarps][kOrderTile];
  };
  std::uint32_t pool[kPoolKeys];  // class << kKeyBits | key
  PoolRun runs[kOrderWarps][kWarpTiles];
  int num_listed;  // keys, also those that have no place in the pool
};
// Two blocks of a multiprocessor; each takes 1 KB more.
static_assert(2 * (sizeof(SharedOrder) + 1024) <= 228 * 1024);

class OrderClasses {
 public:
  S2O_DEVICE explicit OrderClasses(const ClassOrderArgs& args)
      : args_(args), s_(*reinterpret_cast<SharedOrder*>(shared_memory())) {
    const RowBatch::Row row = args.batch.row(args.shape, block_index());
    segment_ = row.segment;
    list_ = row.list;
    length_ = static_cast<int>(args.shape.history_length(segment_));
    room_ = static_cast<int>(args.shape.order_length(segment_));
    classes_ = args.classes +
               args.batch.place(args.shape, list_, load_global(args.row_offsets + segment_));
    order_ = opaque(args.order + list_ * args.order_per_list +
                    load_global(args.order_offsets + segment_));
    const int tiles = ceil_div(length_, kOrderTile);
    num_tiles_ = (tiles - warp_index() + kOrderWarps - 1) / kOrderWarps;
  }

  S2O_DEVICE void run() {
    if (length_ == 0) return;
    for (int i = thread_index(); i < kOrderWarps * kMeanClasses; i += kOrderThreads) {
      (&s_.classes.counts[0][0])[i] = 0;
    }
    if (thread_index() == 0) s_.num_listed = 0;
    sync_block(kOrderThreads);
    collect();
    sync_block(kOrderThreads);
    if (thread_index() < kPlacingThreads) {
      place_classes(s_.classes, [] { sync_named(1, kPlacingThreads); });
    }
    sync_block(kOrderThreads);
    const bool has_pool = s_.num_listed <= kPoolKeys;
    const int count = min_of(s_.num_listed, room_);
    if (has_pool) {
      sort_pool();
    } else {
      sort_again();
    }
    sync_block(kOrderThreads);
#pragma unroll 4
    for (int i = thread_index(); i < count; i += kOrderThreads) {
      const std::uint32_t entry = s_.pool[has_pool ? s_.sorted[i] : i];
      store_global(order_ + i, static_cast<std::int32_t>(entry & kKeyMask));
    }
    if (room_ < length_) tell(count);
  }

 private:
  static constexpr int kKeyBits = 24;
  static constexpr std::uint32_t kKeyMask = (1u << kKeyBits) - 1u;
  static_assert(kClassOrderHistory <= 1 << kKeyBits);

  // Classes of the kLaneKeys keys of a lane.
  struct LaneClasses {
    std::uint32_t word[8];

    // A bit a key, whether it has a class: bit 8 b + k for byte b of word k.
    S2O_DEVICE std::uint32_t listed() const {
      std::uint32_t bits = 0;
#pragma unroll
      for (int k = 0; k < 8; ++k) {
        bits |= ((word[k] + 0x7f7f7f7fu) & 0x80808080u) >> (7 - k);
      }
      return bits;
    }
  };
  // Byte of the tile of a bit, counted over lanes.
  S2O_DEVICE static std::uint32_t byte_of_bit(std::uint32_t bit) {
    return (bit & ~31u) | (bit & 7u) << 2 | (bit >> 3 & 3u);
  }

  S2O_DEVICE static int tile_key(int tile) {
    return (tile * kOrderWarps + warp_index()) * kOrderTile;
  }
  // Keys beyond the row have no class: rows end inside their padding, and the block with their last
  // key is written whole.
  S2O_DEVICE LaneClasses load_lane(int tile) const {
    LaneClasses lane = {};
    const int first = tile_key(tile) + lane_index() * kLaneKeys;
    if (tile >= num_tiles_ || first / kStoredBlock * kStoredBlock >= length_) return lane;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const Words4 words = load_global_16(classes_ + first + half * 16);
#pragma unroll
      for (int w = 0; w < 4; ++w) lane.word[half * 4 + w] = words.word[w];
    }
    return lane;
  }
  S2O_DEVICE static int inclusive_sum(int count) {
    auto sum = static_cast<std::uint32_t>(count);
#pragma unroll
    for (int delta = 1; delta < 32; delta *= 2) sum = plus_lane_below(sum, delta);
    return static_cast<int>(sum);
  }
  // put(place, key of the tile) for the lane's listed keys, at ascending places.
  template <class Put>
  S2O_DEVICE static void put_listed(std::uint32_t listed, int place, const Put& put) {
#pragma unroll 1
    for (; listed != 0; listed &= listed - 1) {
      put(place++, static_cast<std::uint32_t>(lane_index() * kLaneKeys + lowest_bit(listed)));
    }
  }

  S2O_DEVICE void collect() const {
    unsigned char* const own_tile = s_.tiles[warp_index()];
    std::uint32_t* const counts = s_.classes.counts[warp_index()];
    LaneClasses ahead = load_lane(0);
    for (int tile = 0; tile < num_tiles_; ++tile) {
      const LaneClasses lane = ahead;
      ahead = load_lane(tile + 1);
      const std::uint32_t listed = lane.listed();
      const int own = count_bits(listed);
      const int inclusive = inclusive_sum(own);
      const int count = shuffle_from(inclusive, 31);
      int begin = 0;
      if (lane_index() == 0) {
        if (count > 0) begin = atomic_add(&s_.num_listed, count);
        s_.runs[warp_index()][tile] = {static_cast<std::uint16_t>(begin),
                                       static_cast<std::uint16_t>(count)};
      }
      if (count == 0) continue;
      begin = shuffle_from(begin, 0);
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        store_shared_16(own_tile + lane_index() * kLaneKeys + half * 16,
                        {{lane.word[half * 4], lane.word[half * 4 + 1], lane.word[half * 4 + 2],
                          lane.word[half * 4 + 3]}});
      }
      if (begin + count > kPoolKeys) {
        put_listed(listed, 0, [&](int, std::uint32_t key) {
          atomic_count(&counts[own_tile[byte_of_bit(key)]]);  // the lane's own bytes
        });
        sync_warp();
        continue;
      }
      std::uint32_t* const pool = s_.pool + begin;
      put_listed(listed, inclusive - own, [&](int place, std::uint32_t key) { pool[place] = key; });
      sync_warp();
      for (int i = lane_index(); i < count; i += 32) {
        const std::uint32_t byte = byte_of_bit(pool[i]);
        const std::uint32_t c = own_tile[byte];
        pool[i] =
            c << kKeyBits | (static_cast<std::uint32_t>(tile_key(tile)) + key_of_stored(byte));
        atomic_count(&counts[c]);
      }
      sync_warp();  // all have read what the next tile overwrites
    }
  }

  // Place in the order of a key of the class, where the lane has one; the warp's keys in ascending
  // order.
  S2O_DEVICE static int next_place(std::uint32_t* places, bool exists, std::uint32_t c) {
    // Class 0 is that of nothing.
    const std::uint32_t peers = matching_lanes<7>(c);
    const std::uint32_t begin = places[c];
    sync_warp();  // every lane has read the place
    const int lower = count_bits(peers & ((1u << lane_index()) - 1u));
    if (exists && lower == 0) places[c] = begin + static_cast<std::uint32_t>(count_bits(peers));
    sync_warp();
    return static_cast<int>(begin) + lower;
  }

  S2O_DEVICE void sort_pool() const {
    std::uint32_t* const places = s_.classes.counts[warp_index()];
    for (int tile = 0; tile < num_tiles_; ++tile) {
      const PoolRun run = s_.runs[warp_index()][tile];
      for (int i = lane_index(); i < ceil_div(int{run.count}, 32) * 32; i += 32) {
        const bool exists = i < run.count;
        const std::uint32_t entry = exists ? s_.pool[run.begin + i] : 0u;
        const int target = next_place(places, exists, entry >> kKeyBits);
        if (exists && target < room_) s_.sorted[target] = static_cast<std::uint16_t>(run.begin + i);
      }
    }
  }

  S2O_DEVICE void sort_again() const {
    std::uint32_t* const places = s_.classes.counts[warp_index()];
    std::uint16_t* const staged = s_.staged[warp_index()];
    for (int tile = 0; tile < num_tiles_; ++tile) {
      const std::uint32_t listed = load_lane(tile).listed();
      const int own = count_bits(listed);
      const int inclusive = inclusive_sum(own);
      const int count = shuffle_from(inclusive, 31);
      put_listed(listed, inclusive - own, [&](int place, std::uint32_t key) {
        staged[place] = static_cast<std::uint16_t>(key);
      });
      sync_warp();
      for (int i = lane_index(); i < ceil_div(count, 32) * 32; i += 32) {
        const bool exists = i < count;
        const std::uint32_t byte = byte_of_bit(exists ? staged[i] : 0u);
        const std::uint32_t c = exists ? classes_[tile_key(tile) + byte] : 0u;
        const int target = next_place(places, exists, c);
        if (exists && target < room_) {
          s_.pool[target] = static_cast<std::uint32_t>(tile_key(tile)) + key_of_stored(byte);
        }
      }
      sync_warp();
    }
  }

  S2O_DEVICE void tell(int count) const {
    const int tiles = args_.tiles_per_segment;
    for (int i = thread_index(); i < args_.heads_per_list * tiles; i += kOrderThreads) {
      const int tile = segment_ * tiles + i % tiles;
      if (tile >= args_.num_tiles) continue;
      const std::int64_t id =
          std::int64_t{list_ * args_.heads_per_list + i / tiles} * args_.num_tiles + tile;
      args_.items[load_global(args_.item_offsets + id + 1) - 1].count = count;
    }
  }

  const ClassOrderArgs& args_;
  SharedOrder& s_;
  int segment_, list_;
  int length_;     // of the history
  int room_;       // of the order
  int num_tiles_;  // of the warp
  const unsigned char* classes_;
  std::int32_t* order_;
};

struct OrderClassesKernel {
  static constexpr const char* kName = "planning: order of classes";
  static constexpr int kThreads = kOrderThreads;
  static constexpr int kMinBlocks = 2;
  static Grid grid(const ClassOrderArgs& args) {
    return {.blocks = args.batch.num_rows(args.shape), .shared_bytes = sizeof(SharedOrder)};
  }
  S2O_DEVICE static void run(const ClassOrderArgs& args) { OrderClasses(args).run(); }
};

}  // namespace s2o::device
