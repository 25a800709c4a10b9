// Columns and windows of MInference (ops.h).
#pragma once

#include "kernels/planning/launch.cuh"
#include "kernels/planning/minference/ops.h"
#include "kernels/planning/shared/block_cut.cuh"
#include "kernels/planning/shared/emit_items.cuh"

namespace s2o::device {

// One block of kCutThreads threads a head.
S2O_DEVICE void top_entries(const TopEntryArgs& args) {
  SharedCut& s = *reinterpret_cast<SharedCut*>(shared_memory());
  const float* const mass = args.mass + block_index() * args.seqlen;
  std::int32_t* const entries =
      args.entries + static_cast<std::int64_t>(block_index()) * args.count;
  const int count = static_cast<int>(args.seqlen);
  const int wanted = args.count;
  const int forced = args.forced;
  const auto value_of = [mass, forced](int i) {
    return i < forced ? -kNegativeInfinity : load_global(mass + i);
  };
  const BlockCut found = find_block_cut(
      s, value_of, count, [wanted](const CountAndSum& m) { return m.count >= wanted; },
      /*keep_crossing=*/true);
  const bool descending = args.descending;
  visit_kept(s, value_of, count, found.cut, [entries, wanted, descending](int place, int i) {
    entries[descending ? wanted - 1 - place : place] = i;
  });
}

inline constexpr int kWindowThreads = 128;

// One thread a tile: the windows grow one distance after the other.
S2O_DEVICE void tile_windows(const WindowArgs& args) {
  const int blocks = ceil_div(args.end_tile - args.first_tile, kWindowThreads);
  const int head = block_index() / blocks;
  const int tile = args.first_tile + block_index() % blocks * kWindowThreads + thread_index();
  if (tile >= args.end_tile) return;
  const std::int64_t place = static_cast<std::int64_t>(head) * args.num_tiles + tile;
  PlanItem* const items = args.items + load_global(args.item_offsets + place);
  const std::int64_t first = static_cast<std::int64_t>(tile) * kWindow;
  const auto end = static_cast<std::int32_t>(first + kWindow);
  const std::int64_t end_key = first + kWindow < args.seqlen ? first + kWindow : args.seqlen;
  int count = 0;
  // Windows [from, to) that every row of the tile sees need no mask; keys after the tile's last
  // row are cut off.
  const auto emit = [&](std::int64_t from, std::int64_t to) {
    std::int64_t past = from;
    if (first + 1 > from) past = from + (first + 1 - from) / kWindow * kWindow;
    if (past > to) past = to;
    PlanItem item;
    item.kind = ItemKind::kRun;
    if (past > from) {
      item.begin = from;
      item.count = static_cast<std::int32_t>(past - from);
      item.mask = MaskClass::kNone;
      store_item(items + count++, item);
    }
    if (to > end_key) to = end_key;
    if (to > past) {
      item.begin = past;
      item.count = static_cast<std::int32_t>(to - past);
      item.mask = MaskClass::kCausal;
      store_item(items + count++, item);
    }
  };
  const std::int32_t* const distances =
      args.distances + static_cast<std::int64_t>(head) * args.num_distances;
  std::int32_t from = 0;
  std::int32_t to = -1;  // none yet
#pragma unroll 4
  for (int i = 0; i < args.num_distances; ++i) {
    const std::int32_t distance = load_global(distances + i);
    if (distance >= end) continue;
    const std::int32_t stop = end - distance > kWindow ? end - distance : kWindow;
    if (to < 0 || stop > to + kWindow) {
      if (to >= 0) emit(from, to);
      from = stop - kWindow;
      to = stop;
    } else if (stop > to) {
      to += kWindow;
    }
  }
  if (to >= 0) emit(from, to);
  args.item_counts[place] = count;
}

// Runs of a tile that its warp keeps in shared memory; more are searched where they lie.
inline constexpr int kCachedRuns = 2048;

struct SharedColumns {
  struct Run {
    std::int32_t begin, end;
  } runs[kWindowThreads / 32][kCachedRuns];
};

// One warp a tile: columns before the tile that no window holds, appended as one gather.
S2O_DEVICE void tile_columns(const WindowArgs& args) {
  const std::int64_t task =
      static_cast<std::int64_t>(block_index()) * (kWindowThreads / 32) + warp_index();
  const int tiles = args.end_tile - args.first_tile;
  if (task >= static_cast<std::int64_t>(args.num_heads) * tiles) return;
  SharedColumns::Run* const runs =
      reinterpret_cast<SharedColumns*>(shared_memory())->runs[warp_index()];
  const int head = static_cast<int>(task / tiles);
  const std::int64_t tile = args.first_tile + task % tiles;
  const std::int64_t place = static_cast<std::int64_t>(head) * args.num_tiles + tile;
  const std::int64_t first = tile * kWindow;
  PlanItem* const items = args.items + load_global(args.item_offsets + place);
  const int num_runs = args.item_counts[place];
  for (int i = lane_index(); i < min_of(num_runs, kCachedRuns); i += 32) {
    const auto begin = static_cast<std::int32_t>(items[i].begin);
    runs[i] = {begin, begin + items[i].count};
  }
  sync_warp();
  const auto run = [items, runs](int i) -> SharedColumns::Run {
    if (i < kCachedRuns) return runs[i];
    const auto begin = static_cast<std::int32_t>(items[i].begin);
    return {begin, begin + items[i].count};
  };
  const std::int32_t* const columns =
      args.columns + static_cast<std::int64_t>(head) * args.num_columns;
  std::int32_t* const target = args.gather_indices + place * args.num_columns;
  int count = 0;
  for (int i = 0; i < args.num_columns; i += 32) {
    const int own = i + lane_index();
    const std::int32_t column =
        own < args.num_columns ? load_global(columns + own) : static_cast<std::int32_t>(first);
    // Columns at or after the tile's first position lie in a window, or after the last.
    bool kept = column < first;
    if (!any_lane(kept)) break;
    int low = 0;  // runs that begin at or before the column
    int high = num_runs;
    while (low < high) {
      const int middle = (low + high) / 2;
      if (run(middle).begin <= column) {
        low = middle + 1;
      } else {
        high = middle;
      }
    }
    if (low > 0 && column < run(low - 1).end) kept = false;
    const std::uint32_t all = ballot(kept);
    if (kept) target[count + count_bits(all & ((1u << lane_index()) - 1u))] = column;
    count += count_bits(all);
  }
  sync_warp();  // every lane has read the number of runs
  if (lane_index() != 0 || count == 0) return;
  PlanItem item;
  item.begin = place * args.num_columns;
  item.count = count;
  item.kind = ItemKind::kGather;
  item.mask = MaskClass::kNone;
  store_item(items + num_runs, item);
  args.item_counts[place] = num_runs + 1;
}

struct TopEntriesKernel {
  static constexpr const char* kName = "planning: top entries";
  static constexpr int kThreads = kCutThreads;
  static constexpr int kMinBlocks = 0;
  static Grid grid(const TopEntryArgs& args) {
    return {.blocks = args.num_heads, .shared_bytes = sizeof(SharedCut)};
  }
  S2O_DEVICE static void run(const TopEntryArgs& args) { top_entries(args); }
};

struct TileWindowsKernel {
  static constexpr const char* kName = "planning: windows";
  static constexpr int kThreads = kWindowThreads;
  static constexpr int kMinBlocks = 0;
  static Grid grid(const WindowArgs& args) {
    return {.blocks = std::int64_t{args.num_heads} *
                      ceil_div(args.end_tile - args.first_tile, kWindowThreads)};
  }
  S2O_DEVICE static void run(const WindowArgs& args) { tile_windows(args); }
};

struct TileColumnsKernel {
  static constexpr const char* kName = "planning: columns";
  static constexpr int kThreads = kWindowThreads;
  static constexpr int kMinBlocks = 0;
  static Grid grid(const WindowArgs& args) {
    constexpr int kWarps = kWindowThreads / 32;
    const std::int64_t tiles = std::int64_t{args.num_heads} * (args.end_tile - args.first_tile);
    return {.blocks = (tiles + kWarps - 1) / kWarps, .shared_bytes = sizeof(SharedColumns)};
  }
  S2O_DEVICE static void run(const WindowArgs& args) { tile_columns(args); }
};

}  // namespace s2o::device
