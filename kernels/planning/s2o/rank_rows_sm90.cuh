// Ranking of every tile's history by all of its rows (row_ops.h), one kernel: product, reduction
// over the rows, selection. Nothing but the order of the keys that may matter is written.
//
// A block of threads takes tasks, two lists of a KV head, long histories first. A thread of its
// last warp fetches the packed queries, and keys once for both. Each warpgroup has a list: it
// multiplies 64 keys (the rows of a product) by the tile's 128 queries and reduces the scores of a
// key over the queries while the other blocks of the multiprocessor multiply: maxima over the 16
// queries of a lane's columns that are even (odd) in their tiles of 8, then a sum of eight
// exponentials. A group of four lanes holds two keys of each of four products: a byte a key, its
// class, goes to a row of the list's own that stays in the L2 cache, and shared memory counts
// classes by ranges of keys.
//
// Then the counts become places in the order, and each warp reads the classes of a range again and
// writes its keys. Deterministic: places depend on classes and keys only.
//
// Of a history the leading groups of keys and those within the head's reach are looked at: the
// groups between, as far as both lists skip them, are not fetched and have no place in the row of
// classes.
#pragma once

#include "kernels/device/e4m3_sm90.cuh"
#include "kernels/planning/launch.cuh"
#include "kernels/planning/s2o/row_ops.h"
#include "kernels/planning/s2o/select_classes.cuh"
#include "kernels/planning/shared/platform_planning.cuh"
#include "kernels/planning/shared/product_sm90.cuh"

namespace s2o::device {

inline constexpr int kRankRowsLists = 2;  // warpgroups, a list each
inline constexpr int kRankRowsThreads = kRankRowsLists * 128 + 32;
// Three blocks of a multiprocessor hide each other's selections and reductions.
inline constexpr int kRankRowsBlocks = 3;
inline constexpr int kRankRowsStages = 4;
inline constexpr int kGroupStages = 2;
inline constexpr int kStageTiles = kKeyGroupTiles / kGroupStages;  // tiles of 64 keys
inline constexpr int kStageBytes = kPackedGroupBytes / kGroupStages;
static_assert(kRankRowsStages % kGroupStages == 0, "so that the stages of a group are neighbours");
inline constexpr int kRangeWarps = 4;  // of a list

struct SharedRankRows {
  alignas(128) unsigned char q[kRankRowsLists][kPackedQueryBytes];
  alignas(128) unsigned char k[kRankRowsStages][kStageBytes];
  struct List {
    ClassCounts<kRangeWarps> classes;
    std::uint16_t staged[kRangeWarps][kScanKeys];
    std::int32_t is_ranked;  // else only the sink is visited, or there is no list
  } lists[kRankRowsLists];
  std::int32_t task;     // -1: none is left
  std::int32_t skipped;  // groups that neither list looks at, behind the leading ones
  Barrier q_full;
  Barrier q_empty;
  ProductRing<kRankRowsStages> ring;
};
static_assert(kRankRowsBlocks * (sizeof(SharedRankRows) + 1024) <= 228 * 1024);
static_assert(kRangeWarps * 32 == kPlacingThreads);

class RankRowsSm90 {
 public:
  S2O_DEVICE explicit RankRowsSm90(const RankRowsArgs& args)
      : args_(args),
        s_(*reinterpret_cast<SharedRankRows*>(shared_memory())),
        num_tasks_(args.num_tasks()),
        first_row_(args.first_row()) {}

  S2O_DEVICE void run() {
    if (thread_index() == 0) {
      barrier_init(&s_.q_full, 1);
      barrier_init(&s_.q_empty, kRankRowsLists);
      s_.ring.init(kRankRowsLists * 4);
    }
    for (int l = 0; l < kRankRowsLists; ++l) {
      for (int i = thread_index(); i < kRangeWarps * kRowClasses; i += kRankRowsThreads) {
        (&s_.lists[l].classes.counts[0][0])[i] = 0;
      }
    }
    sync_block(kRankRowsThreads);
    if (thread_index() >= kRankRowsLists * 128) {
      if (thread_index() == kRankRowsLists * 128) fill();
    } else {
      consume(warpgroup_index());
    }
  }

 private:
  using Ring = ProductRing<kRankRowsStages>;
  static constexpr int kKeyTileBytes = kPackedGroupBytes / kKeyGroupTiles;

  // Lists of a KV head in order of their tiles; a task is two that follow each other, and the lists
  // of the task may be fewer.
  struct List {
    int segment, head;
    bool exists;
  };
  S2O_DEVICE int group() const { return args_.shape.lists_per_kv_head; }
  S2O_DEVICE List list_of(int task, int l) const {
    const int kv_heads = args_.shape.num_kv_heads;
    const int row = (num_tasks_ / kv_heads - 1 - task / kv_heads) * kRankRowsLists + l + first_row_;
    const bool exists = row < args_.tiles.count() * group();
    return {args_.tiles.at(exists ? row / group() : 0), task % kv_heads * group() + row % group(),
            exists};
  }
  S2O_DEVICE int length_of(const List& list) const {
    return list.exists ? static_cast<int>(args_.shape.history_length(list.segment)) : 0;
  }
  S2O_DEVICE std::int32_t reach_of(const List& list) const {
    const bool is_whole =
        args_.reaches == nullptr || is_whole_tile(list.segment, args_.shape.num_segments);
    return is_whole ? static_cast<std::int32_t>(args_.shape.seqlen)
                    : load_global(&args_.reaches[list.head]);
  }
  S2O_DEVICE static int group_at(int place, int skipped) {
    return place < kLeadingGroups ? place : place + skipped;
  }
  S2O_DEVICE std::int64_t tile_of(const List& list) const {
    return static_cast<std::int64_t>(list.head) * args_.shape.num_segments + list.segment;
  }

  // ---- the thread that fetches ----

  S2O_DEVICE void fill() {
    const std::int64_t groups = num_key_groups(args_.shape.seqlen);
    int entry = 0;
    for (int count = 0;; ++count) {
      const int task = atomic_add(args_.next_task, 1);
      barrier_wait(&s_.q_empty, (count + 1) % 2);
      if (task >= num_tasks_) {
        s_.task = -1;
        barrier_arrive(&s_.q_full);
        return;
      }
      s_.task = task;
      int longest = 0;
      int ranked = 0;
      int first = 0;
      for (int l = 0; l < kRankRowsLists; ++l) {
        const List list = list_of(task, l);
        const int length = length_of(list);
        const std::int32_t reach = reach_of(list);
        const bool is_ranked = length > 0 && reach != kNothingFar;
        s_.lists[l].is_ranked = is_ranked ? 1 : 0;
        if (!is_ranked) continue;
        const int own = first_group_within(length, reach);
        if (ranked == 0 || own < first) first = own;
        if (length > longest) longest = length;
        ++ranked;
      }
      const int skipped = ranked == 0 ? 0 : first - kLeadingGroups;
      s_.skipped = skipped;
      if (ranked == 0) {
        barrier_arrive(&s_.q_full);
        continue;
      }
      barrier_arrive_expect(&s_.q_full, ranked * kPackedQueryBytes);
      for (int l = 0; l < kRankRowsLists; ++l) {
        if (s_.lists[l].is_ranked == 0) continue;
        load_bytes_async(shared_address(s_.q[l]),
                         args_.queries + tile_of(list_of(task, l)) * kPackedQueryBytes,
                         kPackedQueryBytes, &s_.q_full);
      }
      const unsigned char* const keys =
          args_.keys + task % args_.shape.num_kv_heads * groups * kPackedGroupBytes;
      const int stages = (ceil_div(longest, kKeyGroup) - skipped) * kGroupStages;
      for (int stage = 0; stage < stages; ++stage, ++entry) {
        Barrier* const barrier = s_.ring.begin_fill(entry, kStageBytes);
        const int source =
            group_at(stage / kGroupStages, skipped) * kGroupStages + stage % kGroupStages;
        load_bytes_async(shared_address(s_.k[Ring::stage_of(entry)]),
                         keys + static_cast<std::int64_t>(source) * kStageBytes, kStageBytes,
                         barrier);
      }
    }
  }

  // ---- the others ----

  // Of the warpgroup's 128 threads.
  S2O_DEVICE void sync_list() const { sync_named(1 + warpgroup_, 128); }
  S2O_DEVICE static int thread_of_list() { return thread_index() % 128; }
  S2O_DEVICE static int warp_of_list() { return warp_index() % kRangeWarps; }

  S2O_DEVICE void consume(int warpgroup) {
    warpgroup_ = warpgroup;
    list_ = &s_.lists[warpgroup];
    unsigned char* const classes =
        args_.classes + (static_cast<std::int64_t>(block_index()) * kRankRowsLists + warpgroup) *
                            num_key_groups(args_.shape.seqlen) * kKeyGroup;
    int entry = 0;
    for (int count = 0;; ++count) {
      barrier_wait(&s_.q_full, count % 2);
      const int task = static_cast<int>(uniform(static_cast<std::uint32_t>(s_.task)));
      if (task < 0) return;
      int longest = 0;
      for (int l = 0; l < kRankRowsLists; ++l) {
        if (uniform(static_cast<std::uint32_t>(s_.lists[l].is_ranked)) == 0) continue;
        const int length = length_of(list_of(task, l));
        if (length > longest) longest = length;
      }
      const bool is_ranked = uniform(static_cast<std::uint32_t>(list_->is_ranked)) != 0;
      const List list = list_of(task, warpgroup);
      const int length = length_of(list);
      skipped_ = static_cast<int>(uniform(static_cast<std::uint32_t>(s_.skipped)));
      const int num_groups = ceil_div(longest, kKeyGroup) - skipped_;  // of both lists
      groups_per_range_ = ceil_div(num_groups, kRangeWarps);
      if (is_ranked) {
        below_floor_ =
            static_cast<int>(float_bits(load_global(&args_.heads[list.head].floor)) >> 21) - 1;
        score(shared_address(s_.q[warpgroup]),
              {entry, num_groups, first_group_within(length, reach_of(list)), length, classes});
      } else {
        for (int stage = 0; stage < kGroupStages * num_groups; ++stage) {
          s_.ring.wait(entry + stage);
          s_.ring.give_back(entry + stage);
        }
      }
      entry += kGroupStages * num_groups;
      sync_list();  // all have counted, and read the queries and the task
      if (thread_of_list() == 0) barrier_arrive(&s_.q_empty);
      if (!list.exists) continue;
      std::int32_t* const order = args_.order + load_global(args_.order_offsets + tile_of(list));
      if (!is_ranked) {
        const int sink = min_of(args_.sink, length);
        for (int i = thread_of_list(); i < sink; i += 128) order[i] = i;
        if (thread_of_list() == 0) set_count(list, sink);
        continue;
      }
      HistoryShape shape = args_.shape;
      shape.kept_fraction = load_global(&args_.heads[list.head].kept_fraction);
      const int room = static_cast<int>(shape.order_length(list.segment));
      const int total = place_classes(list_->classes, [&] { sync_list(); });
      if (thread_of_list() == 0) set_count(list, min_of(total, room));
      const int range = groups_per_range_ * kKeyGroup;
      write_range(classes, warp_of_list() * range,
                  min_of((warp_of_list() + 1) * range, num_groups * kKeyGroup),
                  skipped_ * kKeyGroup, list_->classes.counts[warp_of_list()],
                  list_->staged[warp_of_list()], order, room);
      clear_range();
      sync_list();  // counts are clear
    }
  }

  S2O_DEVICE void set_count(const List& list, int count) const {
    args_.items[load_global(args_.item_offsets + tile_of(list) + 1) - 1].count = count;
  }

  // ---- product and reduction ----

  S2O_DEVICE static void issue(HalfAccumulators& d, std::uint64_t keys, std::uint64_t queries) {
    multiply_e4m3(d, keys, queries, 0);
    multiply_e4m3(d, descriptor_at(keys, 2 * 64 * 16), descriptor_at(queries, 2 * kRankedRows * 16),
                  1);
  }

  struct ListKeys {
    int entry;       // of the ring
    int num_groups;  // that are fetched
    int first_group, length;
    unsigned char* classes;
  };

  S2O_DEVICE void score(std::uint32_t q, const ListKeys& keys) {
    const std::uint64_t queries = packed_descriptor(q, kRankedRows);
    const std::uint64_t first_tile = packed_descriptor(shared_address(s_.k), 64);
    std::uint32_t* counts = list_->classes.counts[0];
    int left_of_range = groups_per_range_;
    int entry = keys.entry;
    for (int place = 0; place < keys.num_groups; ++place, entry += kGroupStages) {
      if (left_of_range == 0) {
        counts += kRowClasses;
        left_of_range = groups_per_range_;
      }
      --left_of_range;
      const int group = group_at(place, skipped_);
      unsigned char* const classes = keys.classes + place * kKeyGroup + own_key();
      if (group >= kLeadingGroups && group < keys.first_group) {  // for the other list
        for (int stage = entry; stage < entry + kGroupStages; ++stage) {
          s_.ring.wait(stage);
          s_.ring.give_back(stage);
        }
        *reinterpret_cast<std::uint16_t*>(classes) = 0;
        continue;
      }
      float kept[2];
      weigh(queries, descriptor_at(first_tile, Ring::stage_of(entry) * kStageBytes), entry, kept);
      classify(kept, group * kKeyGroup, keys.length, classes, counts);
    }
  }

  // Of a group whose stages begin at `keys`. A group of four lanes holds parts of the weights of
  // two keys of every tile; lane b keeps the sums of tile b.
  S2O_DEVICE void weigh(std::uint64_t queries, std::uint64_t keys, int entry, float (&kept)[2]) {
    HalfAccumulators d;
    float parts[2][kKeyGroupTiles];
#pragma unroll
    for (int b = 0; b < kKeyGroupTiles; ++b) {
      const int stage = entry + b / kStageTiles;
      if (b % kStageTiles == 0) s_.ring.wait(stage);
      pin_registers(d);
      warpgroup_fence();
      issue(d, descriptor_at(keys, b * kKeyTileBytes), queries);
      warpgroup_commit();
      warpgroup_wait<0>();
      pin_registers(d);
      if (b % kStageTiles + 1 == kStageTiles) s_.ring.give_back(stage);
#pragma unroll
      for (int i = 0; i < 2; ++i) parts[i][b] = part_of_weight(d, i);
    }
#pragma unroll
    for (int i = 0; i < 2; ++i) kept[i] = transposed_quad_sum(parts[i]);
  }

  // Over the queries whose columns the lane holds.
  S2O_DEVICE static float part_of_weight(const HalfAccumulators& d, int i) {
    constexpr int kTiles = kRankedRows / 8;
    std::uint32_t largest = max_of_pairs(d[0][i], d[1][i], d[2][i]);
#pragma unroll
    for (int j = 3; j < kTiles - 1; j += 2) {
      largest = max_of_pairs(largest, d[j][i], d[j + 1][i]);
    }
    largest = max_of_pairs(largest, d[kTiles - 1][i]);
    return exp2_fast(unpack_low<Fp16>(largest)) + exp2_fast(unpack_high<Fp16>(largest));
  }

  // Octaves and quarters are the leading bits of a float.
  S2O_DEVICE std::uint32_t class_of(float sum) const {
    const int c = static_cast<int>(float_bits(sum) >> 21) - below_floor_;
    return static_cast<std::uint32_t>(c < 0 ? 0 : min_of(c, kRowClasses - 2));
  }

  // Of a group, the first of the lane's two keys.
  S2O_DEVICE static int own_key() {
    return warp_index() % 4 * 64 + lane_index() / 4 * 8 + lane_index() % 4 * 2;
  }

  // Two keys of the group that begins at key `first`.
  S2O_DEVICE void classify(const float (&kept)[2], int first, int length, unsigned char* classes,
                           std::uint32_t* counts) const {
    std::uint32_t c[2] = {class_of(kept[0]), class_of(kept[1])};
    if (first < args_.sink || first + kKeyGroup > length) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const int key = first + own_key() + i;
        if (key < args_.sink) c[i] = kRowClasses - 1;
        if (key >= length) c[i] = 0;
      }
    }
    *reinterpret_cast<std::uint16_t*>(classes) = static_cast<std::uint16_t>(c[0] | c[1] << 8);
    if (c[0] != 0) atomic_count(&counts[c[0]]);
    if (c[1] != 0) atomic_count(&counts[c[1]]);
  }

  S2O_DEVICE void clear_range() const {
    for (int c = lane_index(); c < kRowClasses; c += 32)
      list_->classes.counts[warp_of_list()][c] = 0;
  }

  const RankRowsArgs& args_;
  SharedRankRows& s_;
  const int num_tasks_;
  const int first_row_;
  int below_floor_ = 0;  // leading bits of a sum one class below the floor of the list's head
  int groups_per_range_ = 1;
  int skipped_ = 0;  // as in shared memory
  int warpgroup_ = 0;
  SharedRankRows::List* list_ = nullptr;
};

struct RankRowsKernel {
  static constexpr const char* kName = "planning: ranking by rows";
  static constexpr int kThreads = kRankRowsThreads;
  static constexpr int kMinBlocks = kRankRowsBlocks;
  struct Added {
    std::int32_t num_blocks;
  };
  static Added added(const RankRowsArgs& args, const AddedBy& by) {
    const int resident = min_of(by.num_multiprocessors(), kMaxRankBlocks) * kRankRowsBlocks;
    return {min_of(min_of(resident, kMaxRankBlocks), args.num_tasks())};
  }
  static Grid grid(const RankRowsArgs& /*args*/, const Added& added) {
    return {.blocks = added.num_blocks, .shared_bytes = sizeof(SharedRankRows)};
  }
  S2O_DEVICE static void run(const RankRowsArgs& args, const Added& /*added*/) {
    RankRowsSm90(args).run();
  }
};

}  // namespace s2o::device
