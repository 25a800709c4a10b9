// Mean queries times keys on the tensor cores, for the ranking of histories (history.h).
//
// A block holds kScoreRowTile rows of one KV head, its means in registers, and walks kKeyChunk
// keys, kScoreKeyTile at a time through kScoreStages buffers. Rows says what becomes of scores.
#pragma once

#include "kernels/device/cp_async.cuh"
#include "kernels/device/layout.cuh"
#include "kernels/device/mma_sm80.cuh"
#include "kernels/planning/launch.cuh"
#include "kernels/planning/s2o/ops.h"
#include "kernels/planning/shared/platform_planning.cuh"

namespace s2o::device {

inline constexpr int kScoreThreads = 128;
inline constexpr int kScoreKeyTile = 64;
inline constexpr int kScoreStages = 3;

template <int kHeadDim>
struct SharedScores {
  alignas(128) unsigned char means[tile_bytes(kScoreRowTile, kHeadDim)];
  alignas(128) unsigned char k[kScoreStages][tile_bytes(kScoreKeyTile, kHeadDim)];
};

// Key of the tile that is stored as row `slot` where lanes shall have neighbouring keys: in each 32
// keys, columns 2q and 2q + 1 of the four products of 8 columns are keys 8q + 2j and 8q + 2j + 1 of
// product j.
S2O_HOST_DEVICE constexpr int score_key_of_slot(int slot) {
  const int product = slot % 32 / 8;
  const int column = slot % 8;
  return slot / 32 * 32 + column / 2 * 8 + product * 2 + column % 2;
}

// Rows has the 2 kWarpRows / 16 rows of a thread:
//   Args                            what the kernel is launched with
//   kName                           of the kernel
//   kNeighbours                     lanes have 8 neighbouring keys
//   describe(r, args, kv_head, row)
//   store<kWhole>(r, args, key, end, score)
//     keys [key, key + 32), kWhole or up to `end`, 0 where there is no row; score(j, i) of this
//     lane's two columns of the product j < 4 of 8 columns
//   publish(r, args, kv_head, row)  at the end
template <class Element, int kHeadDim, class Rows>
class MeanProduct {
 public:
  using Args = typename Rows::Args;
  S2O_DEVICE explicit MeanProduct(const Args& args)
      : args_(args), s_(*reinterpret_cast<Shared*>(shared_memory())) {
    // Blocks of the same keys are neighbours, so that the L2 cache holds these keys.
    const RowBatch& batch = args.batch;
    const int num_row_tiles = batch.num_row_tiles(args.shape, kScoreRowTile);
    const int num_key_chunks = batch.num_key_chunks(args.shape, kKeyChunk);
    const int row_tile = block_index() % num_row_tiles;
    const int chunk = block_index() / num_row_tiles % num_key_chunks;
    kv_head_ = batch.first_kv_head + block_index() / num_row_tiles / num_key_chunks;
    first_row_ = batch.first_segment * args.shape.lists_per_kv_head + row_tile * kScoreRowTile;
    end_row_ = batch.end_segment * args.shape.lists_per_kv_head;
    first_key_ = chunk * kKeyChunk;
    end_key_ = min_of(first_key_ + kKeyChunk, row_end(first_row_ + kScoreRowTile - 1));
    const std::int64_t key = kv_head_ * args.shape.seqlen + key_of_slot(thread_index() / kChunks);
    key_source_ = opaque(static_cast<const unsigned char*>(args.k) + key * kKeyBytes +
                         thread_index() % kChunks * kChunkBytes);
  }

  S2O_DEVICE void run() {
    if (first_key_ >= end_key_) return;
    load_rows(shared_address(s_.means), args_.means);
    load_keys(0, first_key_);
    copy_async_commit();
    load_keys(1, first_key_ + kScoreKeyTile);
    copy_async_commit();
    describe_rows();
    copy_async_wait<1>();
    sync_block(kScoreThreads);
    load_means();
    int buffer = 0;
    for (int key = first_key_; key < end_key_; key += kScoreKeyTile) {
      copy_async_wait<1>();
      sync_block(kScoreThreads);  // the tile is there, and nobody reads the buffer filled next
      load_keys((buffer + 2) % kScoreStages, key + 2 * kScoreKeyTile);
      copy_async_commit();
      score_tile(buffer, key);
      buffer = (buffer + 1) % kScoreStages;
    }
    copy_async_wait<0>();
#pragma unroll
    for (int r = 0; r < 2 * kRowTiles; ++r) {
      rows_.publish(r, args_, kv_head_, row_of(r / 2, r % 2));
    }
  }

 private:
  using Shared = SharedScores<kHeadDim>;
  static constexpr int kKeyBytes = kHeadDim * 2;
  static constexpr int kChunks = kHeadDim / kChunkElements;
  static constexpr int kRowsPerPass = kScoreThreads / kChunks;
  // A warp has kWarpRows rows and one half of the keys.
  static constexpr int kWarpRows = 32;
  static constexpr int kWarpKeys = 32;
  static constexpr int kRowWarps = kScoreRowTile / kWarpRows;
  static_assert(kScoreThreads == 32 * kRowWarps * (kScoreKeyTile / kWarpKeys));
  static constexpr int kRowTiles = kWarpRows / 16;
  static constexpr int kKeyTiles = kWarpKeys / 8;
  using Scores = float[kRowTiles][kKeyTiles][4];

  static S2O_DEVICE constexpr int key_of_slot(int slot) {
    return Rows::kNeighbours ? score_key_of_slot(slot) : slot;
  }
  // First row of the warp in the tile, and first key.
  static S2O_DEVICE int warp_row() { return warp_index() % kRowWarps * kWarpRows; }
  static S2O_DEVICE int warp_key() { return warp_index() / kRowWarps * kWarpKeys; }

  // Ranked keys of the row, or of the last one if there are not so many. Never falls with the row.
  S2O_DEVICE int row_end(int row) const {
    const int segment = min_of(row, end_row_ - 1) / args_.shape.lists_per_kv_head;
    return static_cast<int>(args_.shape.history_length(segment));
  }

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
  S2O_DEVICE void load_keys(int buffer, int first) const {
    if (first >= end_key_) return;
    // Keys beyond the history are not looked at, but must exist.
    if (first + kScoreKeyTile <= args_.shape.seqlen) {
      copy_keys<true>(buffer, first);
    } else {
      copy_keys<false>(buffer, first);
    }
  }
  template <bool kAllExist>
  S2O_DEVICE void copy_keys(int buffer, int first) const {
    // Slots of a thread differ in bits that its first one has not: their keys differ by constants.
    static_assert(kRowsPerPass % 8 == 0 && (kRowsPerPass & (kRowsPerPass - 1)) == 0);
    const int slot = thread_index() / kChunks;
    const int first_key = first + key_of_slot(slot);
    const std::uint32_t target =
        shared_address(s_.k[buffer]) + static_cast<std::uint32_t>(swizzled_chunk_offset(
                                           kScoreKeyTile, slot, thread_index() % kChunks));
    const unsigned char* const source = key_source_ + std::int64_t{first} * kKeyBytes;
#pragma unroll
    for (int passed = 0; passed < kScoreKeyTile; passed += kRowsPerPass) {
      const int key = key_of_slot(passed);
      const std::uint32_t place = target + static_cast<std::uint32_t>(passed * kPanelRowBytes);
      if constexpr (kAllExist) {
        copy_async_16(place, source + key * kKeyBytes);
      } else {
        const bool exists = first_key + key < args_.shape.seqlen;
        copy_async_16(place, exists ? source + key * kKeyBytes : source, exists);
      }
    }
  }

  S2O_DEVICE void load_means() {
    const MatrixPosition source = ldmatrix_a_source(static_cast<unsigned>(lane_index()));
    const std::uint32_t lane =
        swizzled_lane_address(shared_address(s_.means), warp_row() + source.row, source.column);
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
    return first_row_ + warp_row() + t * 16 +
           accumulator_position(static_cast<unsigned>(lane_index()), 2 * static_cast<unsigned>(i))
               .row;
  }

  S2O_DEVICE void describe_rows() {
    const int first = first_row_ + warp_row();
    const int last = first + kWarpRows - 1;
    longest_ = first < end_row_ ? row_end(last) : 0;
    shortest_ = last < end_row_ ? row_end(first) : 0;
#pragma unroll
    for (int r = 0; r < 2 * kRowTiles; ++r) {
      rows_.describe(r, args_, kv_head_, min_of(row_of(r / 2, r % 2), end_row_ - 1));
    }
  }

  S2O_DEVICE void score_tile(int buffer, int tile_key) {
    const int first_key = tile_key + warp_key();
    if (tile_key >= longest_) return;  // tiles are written whole
    Scores score;
#pragma unroll
    for (int t = 0; t < kRowTiles; ++t) {
#pragma unroll
      for (int n = 0; n < kKeyTiles; ++n) {
#pragma unroll
        for (int e = 0; e < 4; ++e) score[t][n][e] = 0.0f;
      }
    }
    multiply(buffer, score);
    const bool is_whole = first_key + kWarpKeys <= shortest_;
#pragma unroll
    for (int r = 0; r < 2 * kRowTiles; ++r) {
      const auto of_row = [&](int j, int i) { return score[r / 2][j][r % 2 * 2 + i]; };
      if (is_whole) {
        rows_.template store<true>(r, args_, first_key, 0, of_row);
      } else {
        const int row = row_of(r / 2, r % 2);
        rows_.template store<false>(r, args_, first_key, row < end_row_ ? row_end(row) : 0, of_row);
      }
    }
  }

  S2O_DEVICE void multiply(int buffer, Scores& score) const {
    const int lane = lane_index();
    const MatrixPosition b_source = ldmatrix_b_source(static_cast<unsigned>(lane));
    const std::uint32_t key_lane = swizzled_lane_address(
        shared_address(s_.k[buffer]), warp_key() + b_source.row, b_source.column);
#pragma unroll
    for (int step = 0; step < kHeadDim / 16; ++step) {
#pragma unroll
      for (int n = 0; n < kKeyTiles; n += 2) {
        std::uint32_t b[4];
        load_matrix_x4(b, swizzled_step_address(key_lane, kScoreKeyTile, n * 8, 2 * step));
#pragma unroll
        for (int t = 0; t < kRowTiles; ++t) {
          multiply_accumulate<Element>(score[t][n], mean_[step][t], b[0], b[1]);
          multiply_accumulate<Element>(score[t][n + 1], mean_[step][t], b[2], b[3]);
        }
      }
    }
  }

  const Args& args_;
  Shared& s_;
  int kv_head_;
  int first_row_;
  int end_row_;
  const unsigned char* key_source_;  // of this thread's first copy, were the tile at key 0
  int first_key_;
  int end_key_;
  std::uint32_t mean_[kHeadDim / 16][kRowTiles][4];
  // Ends of the longest row of the warp, and of the shortest: up to there no lane has to ask (0 if
  // a row does not exist).
  int longest_;
  int shortest_;
  Rows rows_;
};

template <class Element, int kHeadDim, class Rows>
struct MeanProductKernel {
  static constexpr const char* kName = Rows::kName;
  static constexpr int kThreads = kScoreThreads;
  static constexpr int kMinBlocks = 3;
  static Grid grid(const typename Rows::Args& args) {
    return {.blocks = std::int64_t{args.batch.num_kv_heads} *
                      args.batch.num_row_tiles(args.shape, kScoreRowTile) *
                      args.batch.num_key_chunks(args.shape, kKeyChunk),
            .shared_bytes = sizeof(SharedScores<kHeadDim>)};
  }
  S2O_DEVICE static void run(const typename Rows::Args& args) {
    MeanProduct<Element, kHeadDim, Rows>(args).run();
  }
};

}  // namespace s2o::device
