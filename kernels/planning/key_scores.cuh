// Scores of the history of every row (history.h): mean queries times keys on the tensor cores, the
// diagonal second-order term in the same pass, rounded to fp16.
//
// A block holds kScoreRowTile rows of one KV head, its means in registers, and walks kKeyChunk
// keys, kScoreKeyTile at a time through kScoreStages buffers. Keys are stored in shared memory in
// an order that gives each lane 8 neighbouring keys of a row after the product, so that scores
// leave as 16-byte stores.
#pragma once

#include "kernels/device/cp_async.cuh"
#include "kernels/device/layout.cuh"
#include "kernels/device/mma_sm80.cuh"
#include "kernels/planning/mean_queries.cuh"
#include "kernels/planning/platform_planning.cuh"
#include "kernels/planning/s2o_args.h"

namespace s2o::device {

inline constexpr int kScoreThreads = 128;
inline constexpr int kScoreKeyTile = 64;
inline constexpr int kScoreStages = 3;

template <int kHeadDim, bool kDiagonal>
struct SharedScores {
  alignas(128) unsigned char means[tile_bytes(kScoreRowTile, kHeadDim)];
  alignas(128) unsigned char variances[kDiagonal ? tile_bytes(kScoreRowTile, kHeadDim) : 16];
  alignas(128) unsigned char k[kScoreStages][tile_bytes(kScoreKeyTile, kHeadDim)];
};

// Key of the tile that is stored as row `slot`: in each 32 keys, columns 2q and 2q + 1 of the four
// products of 8 columns are keys 8q + 2j and 8q + 2j + 1 of product j.
S2O_HOST_DEVICE constexpr int score_key_of_slot(int slot) {
  const int product = slot % 32 / 8;
  const int column = slot % 8;
  return slot / 32 * 32 + column / 2 * 8 + product * 2 + column % 2;
}

template <class Element, int kHeadDim, bool kDiagonal>
class KeyScores {
 public:
  S2O_DEVICE explicit KeyScores(const KeyScoreArgs& args)
      : args_(args), s_(*reinterpret_cast<Shared*>(shared_memory())) {
    const HistoryShape& shape = args.shape;
    const int chunk = block_index() % args.num_key_chunks;
    const int tile = block_index() / args.num_key_chunks;
    kv_head_ = args.first_kv_head + tile / args.num_row_tiles;
    first_row_ =
        args.first_segment * shape.lists_per_kv_head + tile % args.num_row_tiles * kScoreRowTile;
    end_row_ = args.end_segment * shape.lists_per_kv_head;
    const int last_row = min_of(first_row_ + kScoreRowTile, end_row_) - 1;
    const std::int64_t history = shape.history_length(last_row / shape.lists_per_kv_head);
    first_key_ = static_cast<std::int64_t>(chunk) * kKeyChunk;
    end_key_ = first_key_ + kKeyChunk < history ? first_key_ + kKeyChunk : history;
  }

  S2O_DEVICE void run() {
    if (first_key_ >= end_key_) return;
    load_rows(shared_address(s_.means), args_.means);
    if constexpr (kDiagonal) load_rows(shared_address(s_.variances), args_.variances);
    load_keys(0, first_key_);
    copy_async_commit();
    load_keys(1, first_key_ + kScoreKeyTile);
    copy_async_commit();
    describe_rows();
    int tile = 0;
    for (std::int64_t key = first_key_; key < end_key_; key += kScoreKeyTile, ++tile) {
      copy_async_wait<1>();
      sync_block(kScoreThreads);  // the tile is there, and nobody reads the buffer filled next
      load_keys((tile + 2) % kScoreStages, key + 2 * kScoreKeyTile);
      copy_async_commit();
      if (tile == 0) load_means();
      score_tile(tile % kScoreStages, key);
    }
    copy_async_wait<0>();
    publish_ranges();
  }

 private:
  using Shared = SharedScores<kHeadDim, kDiagonal>;
  static constexpr int kChunks = kHeadDim / kChunkElements;
  static constexpr int kRowsPerPass = kScoreThreads / kChunks;
  // Four warps: two halves of the rows times two halves of the keys.
  static constexpr int kRowTiles = kScoreRowTile / 2 / 16;
  static constexpr int kKeyTiles = kScoreKeyTile / 2 / 8;

  S2O_DEVICE void load_rows(std::uint32_t target, const void* source) const {
    const std::int64_t base = static_cast<std::int64_t>(kv_head_) * args_.shape.num_segments *
                              args_.shape.lists_per_kv_head;
    const int chunk = thread_index() % kChunks;
    for (int row = thread_index() / kChunks; row < kScoreRowTile; row += kRowsPerPass) {
      const bool exists = first_row_ + row < end_row_;
      const std::int64_t from = base + (exists ? first_row_ + row : first_row_);
      copy_async_16(
          target + static_cast<std::uint32_t>(swizzled_chunk_offset(kScoreRowTile, row, chunk)),
          static_cast<const std::uint16_t*>(source) + from * kHeadDim + chunk * kChunkElements,
          exists);
    }
  }
  S2O_DEVICE void load_keys(int buffer, std::int64_t first) const {
    if (first >= end_key_) return;
    const std::uint32_t target = shared_address(s_.k[buffer]);
    const auto* source =
        static_cast<const std::uint16_t*>(args_.k) + kv_head_ * args_.shape.seqlen * kHeadDim;
    const int chunk = thread_index() % kChunks;
#pragma unroll 4
    for (int slot = thread_index() / kChunks; slot < kScoreKeyTile; slot += kRowsPerPass) {
      const std::int64_t key = first + score_key_of_slot(slot);
      const bool exists = key < end_key_;
      copy_async_16(
          target + static_cast<std::uint32_t>(swizzled_chunk_offset(kScoreKeyTile, slot, chunk)),
          source + (exists ? key : first) * kHeadDim + chunk * kChunkElements, exists);
    }
  }

  S2O_DEVICE void load_means() {
    const MatrixPosition source = ldmatrix_a_source(static_cast<unsigned>(lane_index()));
    const std::uint32_t lane =
        swizzled_lane_address(shared_address(s_.means),
                              warp_index() % 2 * (kScoreRowTile / 2) + source.row, source.column);
#pragma unroll
    for (int step = 0; step < kHeadDim / 16; ++step) {
#pragma unroll
      for (int t = 0; t < kRowTiles; ++t) {
        load_matrix_x4(mean_[step][t],
                       swizzled_step_address(lane, kScoreRowTile, t * 16, 2 * step));
      }
    }
  }

  // Row of the KV head that this thread holds as row `i` (0 or 1) of row tile `t`.
  S2O_DEVICE int row_of(int t, int i) const {
    return first_row_ + warp_index() % 2 * (kScoreRowTile / 2) + t * 16 +
           accumulator_position(static_cast<unsigned>(lane_index()), 2 * static_cast<unsigned>(i))
               .row;
  }
  S2O_DEVICE int list_of(int row) const {
    return kv_head_ * args_.shape.lists_per_kv_head + row % args_.shape.lists_per_kv_head;
  }

  S2O_DEVICE void describe_rows() {
#pragma unroll
    for (int r = 0; r < 2 * kRowTiles; ++r) {
      const int row = row_of(r / 2, r % 2);
      largest_[r] = kMinusInfinityPair;
      smallest_[r] = kInfinityPair;
      const int segment = row / args_.shape.lists_per_kv_head;
      const bool exists = row < end_row_;
      const std::int64_t end = exists ? args_.shape.history_length(segment) : 0;
      row_end_[r] = static_cast<int>(end);
      const std::int64_t list = list_of(row) - args_.first_kv_head * args_.shape.lists_per_kv_head;
      target_[r] = args_.scores;
      if (exists) {
        target_[r] += list * args_.scores_per_list + load_global(args_.score_offsets + segment) -
                      args_.first_offset;
      }
    }
  }

  S2O_DEVICE void score_tile(int buffer, std::int64_t tile_key) {
    const int first_key = static_cast<int>(tile_key) + warp_index() / 2 * (kScoreKeyTile / 2);
    // The rows of a warp have ascending ends: the last one decides.
    const int last_row =
        first_row_ + warp_index() % 2 * (kScoreRowTile / 2) + kScoreRowTile / 2 - 1;
    const int last_segment = min_of(last_row, end_row_ - 1) / args_.shape.lists_per_kv_head;
    if (first_key >= args_.shape.history_length(last_segment)) return;

    float score[kRowTiles][kKeyTiles][4];
#pragma unroll
    for (int t = 0; t < kRowTiles; ++t) {
#pragma unroll
      for (int n = 0; n < kKeyTiles; ++n) {
#pragma unroll
        for (int e = 0; e < 4; ++e) score[t][n][e] = 0.0f;
      }
    }
    multiply(buffer, score);
#pragma unroll
    for (int half = 0; half < kKeyTiles / 4; ++half) {
      const int key = first_key + half * 32 + lane_index() % 4 * 8;
      float bias[8];
#pragma unroll
      for (int i = 0; i < 8; ++i) bias[i] = 0.0f;
      if (args_.key_bias != nullptr) load_bias(key, bias);
#pragma unroll
      for (int r = 0; r < 2 * kRowTiles; ++r) {
        if (key < row_end_[r]) store_scores(r, key, half, bias, score);
      }
    }
  }

  S2O_DEVICE void load_bias(int key, float (&bias)[8]) const {
    const float* source = args_.key_bias + kv_head_ * args_.shape.seqlen;
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      if (key + i < end_key_) bias[i] = load_global(source + key + i);
    }
  }

  // Keys key .. key + 7 of row r; those beyond its end go to the padding of the row. A score that
  // is not finite, or too large for fp16, ends up in the range of the row.
  S2O_DEVICE void store_scores(int r, int key, int half, const float (&bias)[8],
                               const float (&score)[kRowTiles][kKeyTiles][4]) {
    float x[8];
    const int t = r / 2;
    const int i = r % 2;
#pragma unroll
    for (int e = 0; e < 8; ++e) x[e] = score[t][half * 4 + e / 2][2 * i + e % 2];
    if (args_.key_bias != nullptr) {
#pragma unroll
      for (int e = 0; e < 8; ++e) x[e] += bias[e];
    }
    if (key + 8 > row_end_[r]) {
#pragma unroll
      for (int e = 1; e < 8; ++e) x[e] = key + e < row_end_[r] ? x[e] : x[0];
    }
    Words4 words;
#pragma unroll
    for (int pair = 0; pair < 4; ++pair) {
      words.word[pair] = pack_pair<Fp16>(x[2 * pair], x[2 * pair + 1]);
      largest_[r] = max_pairs(largest_[r], words.word[pair]);
      smallest_[r] = min_pairs(smallest_[r], words.word[pair]);
    }
    store_global_16(target_[r] + key, words);
  }

  S2O_DEVICE void multiply(int buffer, float (&score)[kRowTiles][kKeyTiles][4]) const {
    const int lane = lane_index();
    const MatrixPosition a_source = ldmatrix_a_source(static_cast<unsigned>(lane));
    const MatrixPosition b_source = ldmatrix_b_source(static_cast<unsigned>(lane));
    const int first_row = warp_index() % 2 * (kScoreRowTile / 2);
    const int first_slot = warp_index() / 2 * (kScoreKeyTile / 2);
    const std::uint32_t variance_lane = swizzled_lane_address(
        shared_address(s_.variances), first_row + a_source.row, a_source.column);
    const std::uint32_t key_lane = swizzled_lane_address(
        shared_address(s_.k[buffer]), first_slot + b_source.row, b_source.column);
#pragma unroll
    for (int step = 0; step < kHeadDim / 16; ++step) {
      std::uint32_t variance[kRowTiles][4];
#pragma unroll
      for (int t = 0; t < kRowTiles; ++t) {
        if constexpr (kDiagonal) {
          load_matrix_x4(variance[t],
                         swizzled_step_address(variance_lane, kScoreRowTile, t * 16, 2 * step));
        }
      }
#pragma unroll
      for (int n = 0; n < kKeyTiles; n += 2) {
        std::uint32_t b[4];
        load_matrix_x4(b, swizzled_step_address(key_lane, kScoreKeyTile, n * 8, 2 * step));
#pragma unroll
        for (int t = 0; t < kRowTiles; ++t) {
          multiply_accumulate<Element>(score[t][n], mean_[step][t], b[0], b[1]);
          multiply_accumulate<Element>(score[t][n + 1], mean_[step][t], b[2], b[3]);
        }
        if constexpr (kDiagonal) {
#pragma unroll
          for (int i = 0; i < 4; ++i) b[i] = squared<Element>(b[i]);
#pragma unroll
          for (int t = 0; t < kRowTiles; ++t) {
            multiply_accumulate<Element>(score[t][n], variance[t], b[0], b[1]);
            multiply_accumulate<Element>(score[t][n + 1], variance[t], b[2], b[3]);
          }
        }
      }
    }
  }
  S2O_DEVICE void publish_ranges() const {
#pragma unroll
    for (int r = 0; r < 2 * kRowTiles; ++r) {
      std::uint32_t largest = largest_[r];
      std::uint32_t smallest = smallest_[r];
#pragma unroll
      for (int mask = 1; mask < 4; mask *= 2) {
        largest = max_pairs(largest, shuffle_xor(largest, mask));
        smallest = min_pairs(smallest, shuffle_xor(smallest, mask));
      }
      const bool no_key = largest == kMinusInfinityPair && smallest == kInfinityPair;
      if (lane_index() % 4 != 0 || no_key) continue;
      const float high = unpack_low<Fp16>(max_pairs(largest, largest >> 16));
      const float low = unpack_low<Fp16>(min_pairs(smallest, smallest >> 16));
      const int row = row_of(r / 2, r % 2);
      const int segment = row / args_.shape.lists_per_kv_head;
      const auto id = list_of(row) * args_.shape.num_segments + segment;
      ScoreRange* const range = args_.ranges + id;
      atomic_max(&range->largest, ordered_bits(high));
      atomic_max(&range->smallest_complement, ~ordered_bits(low));
      const bool finite = absolute(high) < -kNegativeInfinity && absolute(low) < -kNegativeInfinity;
      if (!finite) atomic_max(args_.bad_row, ~static_cast<std::uint32_t>(id));
    }
  }

  const KeyScoreArgs& args_;
  Shared& s_;
  int kv_head_;
  int first_row_;
  int end_row_;
  std::int64_t first_key_;
  std::int64_t end_key_;
  std::uint32_t mean_[kHeadDim / 16][kRowTiles][4];
  // Of this thread's rows.
  static constexpr std::uint32_t kMinusInfinityPair = 0xfc00fc00u;
  static constexpr std::uint32_t kInfinityPair = 0x7c007c00u;
  std::uint32_t largest_[2 * kRowTiles];  // pairs of fp16
  std::uint32_t smallest_[2 * kRowTiles];
  int row_end_[2 * kRowTiles];
  std::uint16_t* target_[2 * kRowTiles];
};

}  // namespace s2o::device
