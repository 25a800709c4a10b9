// Arguments of the operations that rank by all rows of a tile in low precision (definition:
// lib/methods/s2o/row_ranking.h): profiles, packed keys, estimated normalisers, packed queries,
// and the ranking itself. All pointers are device pointers. Host-safe.
//
// Packed tiles are e4m3 matrices of kPackedColumns columns whose chunks of 16 columns lie one after
// the other: chunk c of row r of a tile of R rows begins at byte 16 (c R + r).
#pragma once

#include <cstdint>

#include "kernels/common/plan_view.h"
#include "kernels/planning/s2o/history.h"

namespace s2o {

inline constexpr int kRankedRows = 128;  // queries of a tile
inline constexpr int kPackedColumns = 64;
// Columns for dimensions; the last two carry what is subtracted from every score of the row.
inline constexpr int kRankedDims = kPackedColumns - 2;
inline constexpr float kShiftHigh = 4.0f;   // what keys hold in the last column but one
inline constexpr float kShiftLow = 0.25f;   // and in the last
inline constexpr float kScoreBias = 32.0f;  // scores that matter are positive (device/e4m3)

inline constexpr int kPackedQueryBytes = kRankedRows * kPackedColumns;
// Keys come in groups of four tiles of 64 rows. Row w 16 + i 8 + g of tile b, i < 2, g < 8, is key
// w 64 + g 8 + b 2 + i: a thread of the product then holds neighbouring keys.
inline constexpr int kKeyGroup = 256;
inline constexpr int kKeyGroupTiles = 4;
inline constexpr int kPackedGroupBytes = kKeyGroup * kPackedColumns;
S2O_ANYWHERE constexpr int packed_key_tile(int key_in_group) { return key_in_group % 8 / 2; }
S2O_ANYWHERE constexpr int packed_key_row(int key_in_group) {
  return key_in_group / 64 * 16 + key_in_group % 2 * 8 + key_in_group % 64 / 8;
}
S2O_ANYWHERE constexpr std::int64_t num_key_groups(std::int64_t seqlen) {
  return (seqlen + kKeyGroup - 1) / kKeyGroup;
}

// Keys are ranked by classes of a quarter of an octave of their share of softmax mass, above a
// floor; class 0 is dropped, the last one is for keys that are always visited first.
inline constexpr int kRowClasses = 128;
inline constexpr int kClassesPerOctave = 4;

// Tiles first, first + stride, ... below end.
struct TileSet {
  std::int32_t first = 0;
  std::int32_t stride = 1;
  std::int32_t end = 0;

  S2O_ANYWHERE std::int32_t count() const {
    return first < end ? (end - first + stride - 1) / stride : 0;
  }
  S2O_ANYWHERE std::int32_t at(std::int32_t i) const { return first + i * stride; }
};

// Which tiles need a ranking at all: every probe_stride-th tile is a probe, whose whole history is
// weighed; where both neighbouring probes find little weight, the mass is near.
S2O_ANYWHERE constexpr TileSet probe_tiles(std::int32_t num_segments, std::int32_t probe_stride) {
  return {.first = probe_stride - 1, .stride = probe_stride, .end = num_segments};
}
struct FindLocalArgs {
  const float* probe_weights = nullptr;  // [num_q_heads, probes]
  std::uint8_t* is_local = nullptr;      // [num_q_heads, num_segments]
  std::int32_t num_q_heads = 0;
  std::int32_t num_segments = 0;
  std::int32_t probe_stride = 1;
  float limit = 0.0f;  // of a probe's weight
};

// What is known of a KV head: [num_kv_heads] of each.
struct RowProfile {
  float* key_means = nullptr;    // [num_kv_heads, head_dim]
  std::int32_t* dims = nullptr;  // [num_kv_heads, kPackedColumns]: kRankedDims strongest, ascending
  float* key_scales = nullptr;   // [num_kv_heads, kPackedColumns]: powers of two
  float* query_scales = nullptr;  // the inverses, times softmax_scale log2(e)
};

// Tokens that profiles are made of, at equal distances.
inline constexpr int kProfileTokens = 256;
S2O_ANYWHERE constexpr std::int64_t profile_token(std::int64_t i, std::int64_t count,
                                                  std::int64_t seqlen) {
  return (2 * i + 1) * seqlen / (2 * count);
}

struct RowProfileArgs {
  const void* q = nullptr;  // [num_q_heads, seqlen, head_dim], 16-bit
  const void* k = nullptr;  // [num_kv_heads, seqlen, head_dim], 16-bit
  RowProfile profile;
  std::int64_t seqlen = 0;
  std::int32_t num_kv_heads = 0;
  std::int32_t group_size = 1;
  float softmax_scale = 0.0f;
};

// Keys that stand for the whole history in estimates: one of `stride` consecutive ones, where it
// lies among them by no rule that a rotary embedding could follow.
S2O_ANYWHERE constexpr std::int64_t sampled_key(std::int64_t sample, std::int64_t stride) {
  const auto mixed = static_cast<std::uint32_t>(sample) * 0x9e3779b1u;
  return sample * stride + static_cast<std::int64_t>(mixed >> 16) % stride;
}

struct PackKeysArgs {
  const void* k = nullptr;  // [num_kv_heads, seqlen, head_dim], 16-bit
  RowProfile profile;
  unsigned char* packed = nullptr;  // as RankRowsArgs::keys
  void* samples = nullptr;          // [num_kv_heads, num_samples, head_dim], 16-bit
  // Zero, or the complement of the row (planner.h) of the first key or query that is not finite.
  std::uint32_t* bad_row = nullptr;
  std::int64_t seqlen = 0;
  std::int64_t sample_stride = 1;
  std::int64_t num_samples = 0;
  std::int32_t num_kv_heads = 0;
  std::int32_t group_size = 1;
  std::int32_t num_segments = 0;
};

// Estimates of the normaliser of every query: exact over its own segment up to itself, the window
// before that and the sink, and sampled over the rest.
struct RowNormalizerArgs {
  const void* q = nullptr;                 // [num_q_heads, seqlen, head_dim], 16-bit
  const void* k = nullptr;                 // [num_kv_heads, seqlen, head_dim], 16-bit
  const void* samples = nullptr;           // as in PackKeysArgs
  float* log2_normalizers = nullptr;       // [num_q_heads, seqlen]
  const std::uint8_t* is_local = nullptr;  // as in RankRowsArgs
  TileSet tiles;
  HistoryShape shape;
  std::int64_t sample_stride = 1;
  std::int64_t num_samples = 0;
  std::int32_t sink = 0;
  float softmax_scale = 0.0f;
};

struct PackQueriesArgs {
  const void* q = nullptr;  // [num_q_heads, seqlen, head_dim], 16-bit
  RowProfile profile;
  const float* log2_normalizers = nullptr;  // as in RowNormalizerArgs
  unsigned char* packed = nullptr;          // as RankRowsArgs::queries
  const std::uint8_t* is_local = nullptr;   // as in RankRowsArgs
  std::uint32_t* bad_row = nullptr;         // as in PackKeysArgs
  TileSet tiles;
  HistoryShape shape;
  float softmax_scale = 0.0f;
};

// One sampled key of so many: at most 512 of the whole sequence.
S2O_ANYWHERE constexpr std::int64_t row_sample_stride(std::int64_t seqlen) {
  std::int64_t stride = 16;
  while (seqlen / stride > 512) stride *= 2;
  return stride;
}

// Blocks of threads of a launch: three on each multiprocessor of an H200.
inline constexpr int kMaxRankBlocks = 396;

struct RankRowsArgs {
  const unsigned char* queries = nullptr;  // [num_q_heads, num_segments, kPackedQueryBytes]
  const unsigned char* keys = nullptr;     // [num_kv_heads, num_key_groups, kPackedGroupBytes]
  // [num_q_heads, num_segments]: not 0 where only the sink is to be visited. May be null: nowhere.
  const std::uint8_t* is_local = nullptr;
  unsigned char* classes = nullptr;             // [2 kMaxRankBlocks, num_key_groups * kKeyGroup]
  std::int32_t* next_task = nullptr;            // zero at the start of a launch
  std::int32_t* order = nullptr;                // [num_q_heads, order_per_list]
  const std::int64_t* order_offsets = nullptr;  // [num_segments], into a list
  std::int64_t order_per_list = 0;
  // The last item of a tile of items [num_q_heads, num_segments] learns how many keys there are.
  PlanItem* items = nullptr;
  const std::int64_t* item_offsets = nullptr;  // [num_q_heads * num_segments + 1]
  HistoryShape shape;                          // segments of kRankedRows tokens
  std::int32_t num_q_heads = 0;
  // [num_q_heads, tiles.count()]: if not null, nothing is ranked; the sum of the weights of all
  // keys that have a class, each as the least of its class.
  float* probe_weights = nullptr;
  TileSet tiles;
  std::int32_t sink = 0;  // leading keys that are always visited
  float floor = 0.0f;     // smallest share of a class above 0, times 2^kScoreBias

  // A task is two lists of a KV head, which are numbered by tile, then by head of the group. Tiles
  // without history come first and are no tasks, unless they are to be weighed.
  S2O_ANYWHERE std::int32_t first_row() const {
    std::int32_t skipped = 0;
    while (probe_weights == nullptr && skipped < tiles.count() &&
           shape.history_length(tiles.at(skipped)) == 0) {
      ++skipped;
    }
    return skipped * shape.lists_per_kv_head;
  }
  S2O_ANYWHERE std::int32_t num_tasks() const {
    const std::int32_t rows = tiles.count() * shape.lists_per_kv_head - first_row();
    return (rows + 1) / 2 * shape.num_kv_heads;
  }
};

// The cheap ranking, by the mean query of a tile, for the heads of a group at once: up to
// kMeanLists lists, the columns of a product.
inline constexpr int kMeanLists = 8;
inline constexpr int kPackedMeanBytes = kMeanLists * kPackedColumns;
S2O_ANYWHERE constexpr int mean_octets(int group_size) {
  return (group_size + kMeanLists - 1) / kMeanLists;
}
// Blocks of threads of a launch: one on each multiprocessor of an H200.
inline constexpr int kMaxMeanBlocks = 132;

// Packs the mean query of each tile, and the log2 normaliser of that mean: over the window before
// the tile, the sink and the samples.
struct PackMeansArgs {
  const void* q = nullptr;        // [num_q_heads, seqlen, head_dim], 16-bit
  const void* k = nullptr;        // [num_kv_heads, seqlen, head_dim], 16-bit
  const void* samples = nullptr;  // as in PackKeysArgs
  RowProfile profile;
  // [num_segments, num_kv_heads, octets, kPackedMeanBytes], tiles of kMeanLists rows
  unsigned char* packed = nullptr;
  std::uint32_t* bad_row = nullptr;  // as in PackKeysArgs
  HistoryShape shape;
  std::int64_t sample_stride = 1;
  std::int64_t num_samples = 0;
  std::int32_t sink = 0;
  float softmax_scale = 0.0f;
};

struct RankMeansArgs {
  const unsigned char* means = nullptr;  // as in PackMeansArgs
  const unsigned char* keys = nullptr;   // as in RankRowsArgs, and what follows
  unsigned char* classes = nullptr;      // [kMaxMeanBlocks, kMeanLists, num_key_groups * kKeyGroup]
  std::int32_t* next_task = nullptr;
  std::int32_t* order = nullptr;
  const std::int64_t* order_offsets = nullptr;
  std::int64_t order_per_list = 0;
  PlanItem* items = nullptr;
  const std::int64_t* item_offsets = nullptr;
  HistoryShape shape;
  TileSet tiles;
  std::int32_t sink = 0;
  float log2_floor = 0.0f;  // of the share that the mean query gives a key

  // Tiles without history come first and are no tasks.
  S2O_ANYWHERE std::int32_t first_tile() const {
    std::int32_t tile = 0;
    while (tile < tiles.count() && shape.history_length(tiles.at(tile)) == 0) ++tile;
    return tile;
  }
  S2O_ANYWHERE std::int32_t num_tasks() const {
    return (tiles.count() - first_tile()) * shape.num_kv_heads *
           mean_octets(shape.lists_per_kv_head);
  }
};

}  // namespace s2o
