// Scores of the history of every row (history.h) from the clusters of its queries: means times keys
// on the tensor cores, and in the registers the log-sum-exp over the clusters, so that one fp16
// score per key leaves. The logits [clusters, keys] are never written.
//
// A block holds kClusterRowTile rows of one KV head, one per warp with its means in registers, and
// walks kClusterKeyChunk keys. Keys are the rows of the product: a lane then holds a quarter of the
// logits of a key, and four keys are summed over the quad with three shuffles.
#pragma once

#include "kernels/device/cp_async.cuh"
#include "kernels/device/layout.cuh"
#include "kernels/device/mma_sm80.cuh"
#include "kernels/planning/launch.cuh"
#include "kernels/planning/s2o/cluster_sums.cuh"

namespace s2o::device {

inline constexpr int kClusterScoreThreads = 32 * kClusterRowTile;
inline constexpr int kClusterKeyTile = 64;
inline constexpr int kClusterStages = 3;

template <int kHeadDim>
struct SharedClusterScores {
  // First the means of the block's rows, then tiles of keys.
  union {
    alignas(128) unsigned char means[kClusterRowTile][tile_bytes(kMaxClusters, kHeadDim)];
    alignas(128) unsigned char k[kClusterStages][tile_bytes(kClusterKeyTile, kHeadDim)];
  };
};

template <class Element, int kHeadDim>
class ClusterScores {
 public:
  S2O_DEVICE explicit ClusterScores(const ClusterScoreArgs& args)
      : args_(args.rows),
        log2_weights_(args.log2_weights),
        s_(*reinterpret_cast<SharedClusterScores<kHeadDim>*>(shared_memory())) {
    const HistoryShape& shape = args_.shape;
    // Blocks in flight share a chunk of keys.
    const int tile = block_index() % args_.num_row_tiles;
    const int chunk = block_index() / args_.num_row_tiles % args_.num_key_chunks;
    kv_head_ = args_.first_kv_head + block_index() / args_.num_row_tiles / args_.num_key_chunks;
    const int end_row = args_.end_segment * shape.lists_per_kv_head;
    const int first_row = args_.first_segment * shape.lists_per_kv_head + tile * kClusterRowTile;
    const int last_row = min_of(first_row + kClusterRowTile, end_row) - 1;
    row_ = first_row + warp_index();
    exists_ = row_ < end_row;
    if (!exists_) row_ = last_row;
    first_key_ = chunk * kClusterKeyChunk;
    end_key_ = end_in_chunk(last_row);
    row_end_ = exists_ ? end_in_chunk(row_) : 0;
  }

  S2O_DEVICE void run() {
    if (first_key_ >= end_key_) return;
    hold_means();
    load_keys(0, first_key_);
    copy_async_commit();
    load_keys(1, first_key_ + kClusterKeyTile);
    copy_async_commit();
    int tile = 0;
    for (int key = first_key_; key < end_key_; key += kClusterKeyTile, ++tile) {
      copy_async_wait<1>();
      sync_block(kClusterScoreThreads);  // the tile is there, and nobody reads the one filled next
      load_keys((tile + 2) % kClusterStages, key + 2 * kClusterKeyTile);
      copy_async_commit();
#pragma unroll 1
      for (int part = 0; part < kClusterKeyTile; part += kKeys) {
        if (key + part < row_end_) score_keys(tile % kClusterStages, part, key + part);
      }
    }
    copy_async_wait<0>();
    publish_range();
  }

 private:
  static constexpr int kChunks = kHeadDim / kChunkElements;
  static constexpr int kRowsPerPass = kClusterScoreThreads / kChunks;
  static constexpr int kClusterTiles = kMaxClusters / 8;
  static constexpr int kKeys = 32;  // of a warp at once: two tiles of 16

  S2O_DEVICE int end_in_chunk(int row) const {
    const std::int64_t length = args_.shape.history_length(row / args_.shape.lists_per_kv_head);
    const std::int64_t end = static_cast<std::int64_t>(first_key_) + kClusterKeyChunk;
    return static_cast<int>(end < length ? end : length);
  }

  // Means of the warp's row into registers, by way of the memory that keys use later.
  S2O_DEVICE void hold_means() {
    const std::int64_t row = static_cast<std::int64_t>(kv_head_) * args_.shape.num_segments *
                                 args_.shape.lists_per_kv_head +
                             row_;
    const auto* const source =
        static_cast<const std::uint16_t*>(args_.means) + row * kMaxClusters * kHeadDim;
    const std::uint32_t target = shared_address(s_.means[warp_index()]);
#pragma unroll 4
    for (int i = lane_index(); i < kMaxClusters * kChunks; i += 32) {
      copy_async_16(target + static_cast<std::uint32_t>(
                                 swizzled_chunk_offset(kMaxClusters, i / kChunks, i % kChunks)),
                    source + i * kChunkElements, true);
    }
    copy_async_commit();
    copy_async_wait<0>();
    sync_warp();
    const MatrixPosition b = ldmatrix_b_source(static_cast<unsigned>(lane_index()));
    const std::uint32_t lane = swizzled_lane_address(target, b.row, b.column);
#pragma unroll
    for (int step = 0; step < kHeadDim / 16; ++step) {
#pragma unroll
      for (int n = 0; n < kClusterTiles; n += 2) {
        load_matrix_x4(mean_[step][n / 2],
                       swizzled_step_address(lane, kMaxClusters, n * 8, 2 * step));
      }
    }
#pragma unroll
    for (int i = 0; i < kClusterTiles * 2; ++i) {
      const int c = i / 2 * 8 + lane_index() % 4 * 2 + i % 2;
      bias_[i] = load_global(log2_weights_ + row * kMaxClusters + c) + kLogitShift;
    }
    list_ = kv_head_ * args_.shape.lists_per_kv_head + row_ % args_.shape.lists_per_kv_head;
    segment_ = row_ / args_.shape.lists_per_kv_head;
    target_ =
        args_.scores +
        (list_ - args_.first_kv_head * args_.shape.lists_per_kv_head) * args_.scores_per_list +
        load_global(args_.score_offsets + segment_) - args_.first_offset;
    sync_block(kClusterScoreThreads);  // all rows are in registers
  }

  S2O_DEVICE void load_keys(int buffer, int first) const {
    if (first >= end_key_) return;
    const std::uint32_t target = shared_address(s_.k[buffer]);
    const auto* source =
        static_cast<const std::uint16_t*>(args_.k) + kv_head_ * args_.shape.seqlen * kHeadDim;
    const int chunk = thread_index() % kChunks;
#pragma unroll 4
    for (int row = thread_index() / kChunks; row < kClusterKeyTile; row += kRowsPerPass) {
      const bool exists = first + row < end_key_;
      copy_async_16(
          target + static_cast<std::uint32_t>(swizzled_chunk_offset(kClusterKeyTile, row, chunk)),
          source + static_cast<std::int64_t>(exists ? first + row : first) * kHeadDim +
              chunk * kChunkElements,
          exists);
    }
  }

  S2O_DEVICE void score_keys(int buffer, int part, int first_key) {
    float logit[2][kClusterTiles][4];
#pragma unroll
    for (int t = 0; t < 2; ++t) {
#pragma unroll
      for (int n = 0; n < kClusterTiles; ++n) {
#pragma unroll
        for (int e = 0; e < 4; ++e) logit[t][n][e] = bias_[2 * n + e % 2];
      }
    }
    const MatrixPosition a_source = ldmatrix_a_source(static_cast<unsigned>(lane_index()));
    const std::uint32_t key_lane =
        swizzled_lane_address(shared_address(s_.k[buffer]), part + a_source.row, a_source.column);
#pragma unroll
    for (int step = 0; step < kHeadDim / 16; ++step) {
#pragma unroll
      for (int t = 0; t < 2; ++t) {
        std::uint32_t a[4];
        load_matrix_x4(a, swizzled_step_address(key_lane, kClusterKeyTile, t * 16, 2 * step));
#pragma unroll
        for (int n = 0; n < kClusterTiles; n += 2) {
          multiply_accumulate<Element>(logit[t][n], a, mean_[step][n / 2][0],
                                       mean_[step][n / 2][1]);
          multiply_accumulate<Element>(logit[t][n + 1], a, mean_[step][n / 2][2],
                                       mean_[step][n / 2][3]);
        }
      }
    }
    // Rows of the fragment: lane / 4 + 8 i of tile t is this thread's row 2 t + i.
    float sum[4];
#pragma unroll
    for (int r = 0; r < 4; ++r) sum[r] = cluster_sum(logit[r / 2], r % 2, 0.0f);
    const float total = transposed_quad_sum(sum);
    float score = log2_fast(total);
    if (any_lane(!is_normal_sum(total))) score = careful_score(logit);
    store(first_key, (score - kLogitShift) * kLn2);
  }

  // The scores of keys whose sum is not a normal number: relative to the largest logit.
  S2O_DEVICE static float careful_score(const float (&logit)[2][kClusterTiles][4]) {
    float score = 0.0f;
#pragma unroll
    for (int r = 0; r < 4; ++r) {
      const float own = careful_cluster_score(logit[r / 2], r % 2);
      if (lane_index() % 4 == r) score = own;
    }
    return score;
  }

  S2O_DEVICE void store(int first_key, float score) {
    const int r = lane_index() % 4;
    const int key = first_key + r / 2 * 16 + r % 2 * 8 + lane_index() / 4;
    if (key >= row_end_) return;
    if (args_.key_bias != nullptr) {
      score += load_global(args_.key_bias + kv_head_ * args_.shape.seqlen + key);
    }
    const std::uint32_t pair = pack_pair<Fp16>(score, score);
    largest_ = max_pairs(largest_, pair);
    smallest_ = min_pairs(smallest_, pair);
    target_[key] = static_cast<std::uint16_t>(pair & 0xffffu);
  }

  S2O_DEVICE void publish_range() const {
    std::uint32_t largest = largest_;
    std::uint32_t smallest = smallest_;
#pragma unroll
    for (int mask = 1; mask < 32; mask *= 2) {
      largest = max_pairs(largest, shuffle_xor(largest, mask));
      smallest = min_pairs(smallest, shuffle_xor(smallest, mask));
    }
    if (lane_index() != 0 || first_key_ >= row_end_) return;
    publish_score_range(args_, list_, segment_, unpack_low<Fp16>(largest),
                        unpack_low<Fp16>(smallest));
  }

  const KeyScoreArgs& args_;
  const float* const log2_weights_;
  SharedClusterScores<kHeadDim>& s_;
  int kv_head_;
  int row_;  // of the KV head; of the last row where the warp has none
  bool exists_;
  int list_;
  int segment_;
  int first_key_;
  int end_key_;  // of the block
  int row_end_;  // of the warp
  std::uint16_t* target_;
  std::uint32_t mean_[kHeadDim / 16][kClusterTiles / 2][4];
  float bias_[kClusterTiles * 2];
  std::uint32_t largest_ = 0xfc00fc00u;  // pairs of equal fp16 numbers
  std::uint32_t smallest_ = 0x7c007c00u;
};

template <class Element, int kHeadDim>
struct ClusterScoresKernel {
  static constexpr const char* kName = "planning: scores from clusters";
  static constexpr int kThreads = kClusterScoreThreads;
  static constexpr int kMinBlocks = 3;
  static Grid grid(const ClusterScoreArgs& args) {
    return {.blocks = std::int64_t{args.rows.num_batch_kv_heads} * args.rows.num_row_tiles *
                      args.rows.num_key_chunks,
            .shared_bytes = sizeof(SharedClusterScores<kHeadDim>)};
  }
  S2O_DEVICE static void run(const ClusterScoreArgs& args) {
    ClusterScores<Element, kHeadDim>(args).run();
  }
};

}  // namespace s2o::device
