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

// Tiles that tell how far heads read: so many, at equal distances, up to the last one; none in the
// first quarter.
S2O_ANYWHERE constexpr TileSet probe_tiles(std::int32_t num_segments, std::int32_t num_probes) {
  const std::int32_t stride = 3 * (num_segments / 4) / (num_probes > 0 ? num_probes : 1);
  if (num_probes == 0 || stride == 0) return {};
  return {
      .first = num_segments - 1 - (num_probes - 1) * stride, .stride = stride, .end = num_segments};
}
// Probes look at every fourth group of eight queries.
inline constexpr int kProbedRows = kRankedRows / 4;
S2O_ANYWHERE constexpr bool is_probed(int row) { return row % 32 < 8; }
// Of the first `rows` of a tile.
S2O_ANYWHERE constexpr int num_probed(int rows) {
  return rows / 32 * 8 + (rows % 32 < 8 ? rows % 32 : 8);
}

// The reach of a query head: so many keys before their window are what its tiles rank, and the
// leading ones whatever the reach; or none at all (kNothingFar).
//
// The last tiles rank whole histories, whatever the reach: a prompt asks at its end, and few of its
// queries look for the answer.
inline constexpr int kWholeTiles = 8;
S2O_ANYWHERE constexpr bool is_whole_tile(std::int64_t tile, std::int64_t num_tiles) {
  return tile + kWholeTiles >= num_tiles;
}
inline constexpr int kLeadingGroups = 4;
inline constexpr std::int32_t kNothingFar = -1;
// Groups [kLeadingGroups, first_group_within(...)) of a history are not ranked.
S2O_ANYWHERE constexpr int first_group_within(int history, int reach) {
  const int first = history > reach ? (history - reach) / kKeyGroup : 0;
  return first > kLeadingGroups ? first : kLeadingGroups;
}

// What a query head looks for, all of it a matter of its tau.
struct HeadRanking {
  float floor = 0.0f;              // smallest share of a class above 0, times 2^kScoreBias
  float least_mass = 0.0f;         // share that counts in probes
  float reach_limit = 0.0f;        // of the mass that a probe loses; 0: whole histories
  std::int32_t kept_fraction = 0;  // of its lists, as in HistoryShape
};

// How far heads read: from probes to reaches.
struct FindReachArgs {
  const unsigned char* queries = nullptr;  // as in RankRowsArgs
  const unsigned char* keys = nullptr;
  // Mass of the keys of a group that count, [num_q_heads, probes, num_key_groups], of histories.
  float* masses = nullptr;
  std::int32_t* reaches = nullptr;  // [num_q_heads]
  TileSet tiles;                    // the probes
  HistoryShape shape;
  const HeadRanking* heads = nullptr;  // [num_q_heads]
  std::int32_t sink = 0;
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
S2O_ANYWHERE constexpr std::int64_t profile_token(std::int64_t i, std::int64_t seqlen) {
  return seqlen < kProfileTokens ? i : (2 * i + 1) * seqlen / (2 * kProfileTokens);
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

// Queries in e4m3 with their estimated normalisers, which are exact over the own segment up to the
// query itself, the window before that and the sink, and sampled over the rest.
struct PackQueriesArgs {
  const void* q = nullptr;        // [num_q_heads, seqlen, head_dim], 16-bit
  const void* k = nullptr;        // [num_kv_heads, seqlen, head_dim], 16-bit
  const void* samples = nullptr;  // as in PackKeysArgs
  RowProfile profile;
  unsigned char* packed = nullptr;        // as RankRowsArgs::queries
  const std::int32_t* reaches = nullptr;  // as in RankRowsArgs
  std::uint32_t* bad_row = nullptr;       // as in PackKeysArgs
  TileSet tiles;
  HistoryShape shape;
  std::int64_t sample_stride = 1;
  std::int64_t num_samples = 0;
  std::int32_t sink = 0;
  std::int32_t heads_of_block = 1;  // a part of the heads of a group
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
  const std::int32_t* reaches = nullptr;   // [num_q_heads]; may be null: whole histories
  unsigned char* classes = nullptr;        // [2 kMaxRankBlocks, num_key_groups * kKeyGroup]
  std::int32_t* next_task = nullptr;       // zero at the start of a launch
  std::int32_t* order = nullptr;
  const std::int64_t* order_offsets = nullptr;  // [num_q_heads, num_segments], into order
  // The last item of a tile of items [num_q_heads, num_segments] learns how many keys there are.
  PlanItem* items = nullptr;
  const std::int64_t* item_offsets = nullptr;  // [num_q_heads * num_segments + 1]
  HistoryShape shape;                          // segments of kRankedRows tokens
  const HeadRanking* heads = nullptr;          // [num_q_heads]
  std::int32_t num_q_heads = 0;
  TileSet tiles;
  std::int32_t sink = 0;  // leading keys that are always visited

  // A task is two lists of a KV head, which are numbered by tile, then by head of the group. Tiles
  // without history come first and are no tasks.
  S2O_ANYWHERE std::int32_t first_row() const {
    std::int32_t skipped = 0;
    while (skipped < tiles.count() && shape.history_length(tiles.at(skipped)) == 0) {
      ++skipped;
    }
    return skipped * shape.lists_per_kv_head;
  }
  S2O_ANYWHERE std::int32_t num_tasks() const {
    const std::int32_t rows = tiles.count() * shape.lists_per_kv_head - first_row();
    return (rows + 1) / 2 * shape.num_kv_heads;
  }
};

}  // namespace s2o
