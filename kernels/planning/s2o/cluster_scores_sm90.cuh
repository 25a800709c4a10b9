// Scores from clusters (cluster_scores.cuh) by warpgroup products: the means of kClusterRowsSm90
// rows stay in shared memory, 64 keys are the rows of a product. Exponentials take as long as the
// product on units of their own: four warpgroups, each with part of the columns, keep both busy.
#pragma once

#include "kernels/planning/launch.cuh"
#include "kernels/planning/s2o/cluster_sums.cuh"
#include "kernels/planning/shared/product_sm90.cuh"

namespace s2o::device {

inline constexpr int kClusterRowsSm90 = 8;  // of a block, one KV head
inline constexpr int kClusterColumns = kClusterRowsSm90 * kMaxClusters;
inline constexpr int kClusterKeysSm90 = 64;   // of a ring entry
inline constexpr int kClusterStagesSm90 = 8;  // 128 KiB at head_dim 128, beside 64 of means
inline constexpr int kClusterSplit = 2;       // parts of the columns, each a warpgroup's
inline constexpr int kClusterConsumers = 2 * kClusterSplit;  // each part of every other entry

// What a launch adds to ClusterScoreArgs, whose own tiles and chunks are those of cluster_scores.
struct ClusterGridSm90 {
  TensorMap means;  // [num_kv_heads, rows * kMaxClusters, head_dim], boxes of kClusterColumns rows
  TensorMap k;      // [num_kv_heads, seqlen, head_dim], boxes of kClusterKeysSm90 rows
  std::int32_t num_row_tiles = 0;  // of kClusterRowsSm90 rows
  std::int32_t num_key_chunks = 0;
  std::int32_t chunk_keys = 0;  // a multiple of kClusterKeysSm90
};

// The longest chunks that leave several blocks for each multiprocessor: a block begins with its
// means, under which nothing else runs.
inline int cluster_chunk_sm90(const KeyScoreArgs& args, int num_multiprocessors) {
  const HistoryShape& shape = args.shape;
  const std::int64_t rows =
      static_cast<std::int64_t>(args.num_batch_kv_heads) *
      ceil_div((args.end_segment - args.first_segment) * shape.lists_per_kv_head, kClusterRowsSm90);
  const std::int64_t keys = shape.history_length(args.end_segment - 1);
  int chunk = 8192;
  while (chunk > 512 && rows * ((keys + chunk - 1) / chunk) < 8 * num_multiprocessors) chunk /= 2;
  return chunk;
}
inline ClusterGridSm90 cluster_grid_sm90(const KeyScoreArgs& args, int head_dim,
                                         const AddedBy& by) {
  const HistoryShape& shape = args.shape;
  const int rows = (args.end_segment - args.first_segment) * shape.lists_per_kv_head;
  const int chunk_keys = cluster_chunk_sm90(args, by.num_multiprocessors());
  const auto longest = static_cast<int>(shape.history_length(args.end_segment - 1));
  return {.means = by.tensor_map(mapped_heads(args.means, shape.num_kv_heads,
                                              static_cast<std::int64_t>(shape.num_segments) *
                                                  shape.lists_per_kv_head * kMaxClusters,
                                              head_dim),
                                 kClusterColumns),
          .k = by.tensor_map(mapped_heads(args.k, shape.num_kv_heads, shape.seqlen, head_dim),
                             kClusterKeysSm90),
          .num_row_tiles = ceil_div(rows, kClusterRowsSm90),
          .num_key_chunks = ceil_div(longest, chunk_keys),
          .chunk_keys = chunk_keys};
}

template <int kHeadDim>
struct SharedClusterScoresSm90 {
  alignas(1024) unsigned char means[tile_bytes(kClusterColumns, kHeadDim)];
  alignas(1024) unsigned char k[kClusterStagesSm90][tile_bytes(kClusterKeysSm90, kHeadDim)];
  Barrier means_full;
  ProductRing<kClusterStagesSm90> ring;
  alignas(16) float bias[kClusterColumns];  // log2 weight + kLogitShift
  std::int64_t target[kClusterRowsSm90];    // place of the row in the scores
  std::int32_t end_key[kClusterRowsSm90];   // 0: there is no such row
};

template <class Element, int kHeadDim>
class ClusterScoresSm90 {
 public:
  S2O_DEVICE ClusterScoresSm90(const ClusterScoreArgs& args, const ClusterGridSm90& grid)
      : args_(args.rows),
        log2_weights_(args.log2_weights),
        grid_(grid),
        s_(*reinterpret_cast<SharedClusterScoresSm90<kHeadDim>*>(shared_memory())) {
    // Blocks in flight share a chunk of keys; long histories first.
    const int tile = grid.num_row_tiles - 1 - block_index() % grid.num_row_tiles;
    const int chunk = block_index() / grid.num_row_tiles % grid.num_key_chunks;
    kv_head_ = args_.first_kv_head + block_index() / grid.num_row_tiles / grid.num_key_chunks;
    first_row_ = args_.first_segment * args_.shape.lists_per_kv_head + tile * kClusterRowsSm90;
    end_row_ =
        min_of(first_row_ + kClusterRowsSm90, args_.end_segment * args_.shape.lists_per_kv_head);
    first_key_ = chunk * grid.chunk_keys;
    const int keys = end_in_chunk(end_row_ - 1) - first_key_;
    num_tiles_ = keys <= 0 ? 0 : ceil_div(keys, kClusterKeysSm90);
  }

  S2O_DEVICE void run() {
    if (num_tiles_ == 0) return;
    if (thread_index() == 0) {
      barrier_init(&s_.means_full, 1);
      s_.ring.init(kClusterSplit * 4);
    }
    if (thread_index() < kClusterColumns) describe_column(thread_index());
    sync_block(product_threads(kClusterConsumers));
    run_product<kClusterConsumers>([&] { fill(); }, [&](int warpgroup) { consume(warpgroup); });
  }

 private:
  static constexpr int kPanels = kHeadDim / kPanelColumns;
  static constexpr int kClusterTiles = kMaxClusters / 8;  // of 8 columns
  static constexpr int kPartRows = kClusterRowsSm90 / kClusterSplit;
  static constexpr int kPartColumns = kClusterColumns / kClusterSplit;
  static constexpr int kPairs = kPartRows / 2;

  S2O_DEVICE int end_in_chunk(int row) const {
    const std::int64_t length = args_.shape.history_length(row / args_.shape.lists_per_kv_head);
    const std::int64_t end = static_cast<std::int64_t>(first_key_) + grid_.chunk_keys;
    return static_cast<int>(end < length ? end : length);
  }
  S2O_DEVICE std::int64_t first_mean() const {
    return (static_cast<std::int64_t>(kv_head_) * args_.shape.num_segments *
                args_.shape.lists_per_kv_head +
            first_row_) *
           kMaxClusters;
  }
  S2O_DEVICE int list_of(int row) const {
    return kv_head_ * args_.shape.lists_per_kv_head + row % args_.shape.lists_per_kv_head;
  }

  S2O_DEVICE void describe_column(int column) {
    const int r = column / kMaxClusters;
    const int row = first_row_ + r;
    const bool exists = row < end_row_;
    s_.bias[column] =
        (exists ? load_global(log2_weights_ + first_mean() + column) : 0.0f) + kLogitShift;
    if (column % kMaxClusters != 0) return;
    s_.end_key[r] = exists ? end_in_chunk(row) : 0;
    if (!exists) return;
    s_.target[r] = (list_of(row) - args_.first_kv_head * args_.shape.lists_per_kv_head) *
                       args_.scores_per_list +
                   load_global(args_.score_offsets + row / args_.shape.lists_per_kv_head) -
                   args_.first_offset;
  }

  S2O_DEVICE void fill() {
    barrier_arrive_expect(&s_.means_full, sizeof(s_.means));
#pragma unroll
    for (int panel = 0; panel < kPanels; ++panel) {
      load_box_async(shared_address(s_.means) +
                         static_cast<std::uint32_t>(panel * kClusterColumns * kPanelRowBytes),
                     &grid_.means, &s_.means_full, panel * kPanelColumns, first_row_ * kMaxClusters,
                     kv_head_);
    }
    for (int tile = 0; tile < num_tiles_; ++tile) {
      const std::uint32_t target = shared_address(s_.k[tile % kClusterStagesSm90]);
      Barrier* const barrier = s_.ring.begin_fill(tile, sizeof(s_.k[0]));
#pragma unroll
      for (int panel = 0; panel < kPanels; ++panel) {
        load_box_async(
            target + static_cast<std::uint32_t>(panel * kClusterKeysSm90 * kPanelRowBytes),
            &grid_.k, barrier, panel * kPanelColumns, first_key_ + tile * kClusterKeysSm90,
            kv_head_);
      }
    }
  }

  S2O_DEVICE void consume(int warpgroup) {
    const int part = warpgroup % kClusterSplit;
    const std::uint32_t means =
        shared_address(s_.means) + static_cast<std::uint32_t>(part * kPartColumns * kPanelRowBytes);
    float d[kPartColumns / 8][4];
#pragma unroll
    for (int pair = 0; pair < kPairs; ++pair) {
      largest_[pair] = 0xfc00fc00u;
      smallest_[pair] = 0x7c007c00u;
    }
    barrier_wait(&s_.means_full, 0);
    for (int tile = warpgroup / kClusterSplit; tile < num_tiles_; tile += 2) {
      const int key = first_key_ + tile * kClusterKeysSm90 + key_of_lane();
      const float key_bias = bias_of_key(key);
      s_.ring.wait(tile);
      pin_registers(d);
      issue_product<Element, kPanels>(d, shared_address(s_.k[tile % kClusterStagesSm90]),
                                      kClusterKeysSm90, means, kClusterColumns, false);
      warpgroup_wait<0>();
      pin_registers(d);
      s_.ring.give_back(tile);
      score_keys(d, part, key, key_bias);
    }
    publish_ranges(part);
  }

  // Of the quad that holds rows i and i + 8 of the warp's 16, lane q stores key i + 8 (q % 2) of
  // list row q / 2 of a pair.
  S2O_DEVICE static int key_of_lane() {
    return warp_index() % 4 * 16 + lane_index() % 2 * 8 + lane_index() / 4;
  }
  S2O_DEVICE static int row_of_lane(int part, int pair) {
    return part * kPartRows + 2 * pair + lane_index() % 4 / 2;
  }
  S2O_DEVICE float bias_of_key(int key) const {
    if (args_.key_bias == nullptr || key >= args_.shape.seqlen) return 0.0f;
    return load_global(args_.key_bias + kv_head_ * args_.shape.seqlen + key);
  }

  S2O_DEVICE void score_keys(float (&d)[kPartColumns / 8][4], int part, int key, float key_bias) {
    add_bias(d, part);
    float score[kPairs];
    bool normal = true;
#pragma unroll
    for (int pair = 0; pair < kPairs; ++pair) {
      float sum[4];
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        sum[j] = cluster_sum(&d[(2 * pair + j / 2) * kClusterTiles], j % 2, 0.0f);
      }
      const float total = transposed_quad_sum(sum);
      normal = normal && is_normal_sum(total);
      score[pair] = log2_fast(total);
    }
    if (any_lane(!normal)) {
#pragma unroll
      for (int pair = 0; pair < kPairs; ++pair) score[pair] = careful_score(d, pair);
    }
#pragma unroll
    for (int pair = 0; pair < kPairs; ++pair) {
      store(part, pair, key, fused(score[pair] - kLogitShift, kLn2, key_bias));
    }
  }
  S2O_DEVICE void add_bias(float (&d)[kPartColumns / 8][4], int part) const {
#pragma unroll
    for (int n = 0; n < kPartColumns / 8; ++n) {
      const FloatPair bias =
          load_shared_pair(&s_.bias[part * kPartColumns + n * 8 + lane_index() % 4 * 2]);
      d[n][0] += bias.low;
      d[n][1] += bias.high;
      d[n][2] += bias.low;
      d[n][3] += bias.high;
    }
  }
  S2O_DEVICE static float careful_score(const float (&d)[kPartColumns / 8][4], int pair) {
    float score = 0.0f;
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const float own = careful_cluster_score(&d[(2 * pair + j / 2) * kClusterTiles], j % 2);
      if (lane_index() % 4 == j) score = own;
    }
    return score;
  }

  S2O_DEVICE void store(int part, int pair, int key, float score) {
    const int r = row_of_lane(part, pair);
    if (key >= s_.end_key[r]) return;
    const std::uint32_t both = pack_pair<Fp16>(score, score);
    largest_[pair] = max_pairs(largest_[pair], both);
    smallest_[pair] = min_pairs(smallest_[pair], both);
    args_.scores[s_.target[r] + key] = static_cast<std::uint16_t>(both & 0xffffu);
  }

  S2O_DEVICE void publish_ranges(int part) {
#pragma unroll
    for (int pair = 0; pair < kPairs; ++pair) {
#pragma unroll
      for (int mask = 1; mask < 32; mask *= 2) {
        if (mask == 2) continue;  // another row
        largest_[pair] = max_pairs(largest_[pair], shuffle_xor(largest_[pair], mask));
        smallest_[pair] = min_pairs(smallest_[pair], shuffle_xor(smallest_[pair], mask));
      }
      const int r = row_of_lane(part, pair);
      const int row = first_row_ + r;
      const float largest = unpack_low<Fp16>(largest_[pair]);
      const float smallest = unpack_low<Fp16>(smallest_[pair]);
      if (lane_index() != 0 && lane_index() != 2) continue;
      if (largest < smallest) continue;  // no key of the row lay here
      publish_score_range(args_, list_of(row), row / args_.shape.lists_per_kv_head, largest,
                          smallest);
    }
  }

  const KeyScoreArgs& args_;
  const float* const log2_weights_;
  const ClusterGridSm90& grid_;
  SharedClusterScoresSm90<kHeadDim>& s_;
  int kv_head_;
  int first_row_;  // of the KV head
  int end_row_;
  int first_key_;
  int num_tiles_;                  // of keys
  std::uint32_t largest_[kPairs];  // pairs of equal fp16 numbers
  std::uint32_t smallest_[kPairs];
};

template <class Element, int kHeadDim>
struct ClusterScoresSm90Kernel {
  static constexpr const char* kName = "planning: scores from clusters";
  static constexpr int kThreads = product_threads(kClusterConsumers);
  static constexpr int kMinBlocks = 1;
  static constexpr int kBlockRegisters = block_registers(kClusterConsumers);
  using Added = ClusterGridSm90;
  static Added added(const ClusterScoreArgs& args, const AddedBy& by) {
    return cluster_grid_sm90(args.rows, kHeadDim, by);
  }
  static Grid grid(const ClusterScoreArgs& args, const Added& added) {
    return {.blocks = std::int64_t{args.rows.num_batch_kv_heads} * added.num_row_tiles *
                      added.num_key_chunks,
            .shared_bytes = sizeof(SharedClusterScoresSm90<kHeadDim>)};
  }
  S2O_DEVICE static void run(const ClusterScoreArgs& args, const Added& added) {
    ClusterScoresSm90<Element, kHeadDim>(args, added).run();
  }
};

}  // namespace s2o::device
