// Scores from clusters (cluster_scores.cuh) by warpgroup products: the means of kClusterRowsSm90
// rows stay in shared memory, 64 keys a warpgroup are the rows of a product of 256 columns. The
// warpgroups take turns, so that the exponentials of one run under the product of the other: both
// take the same time.
#pragma once

#include "kernels/planning/cluster_sums.cuh"
#include "kernels/planning/product_sm90.cuh"

namespace s2o::device {

inline constexpr int kClusterRowsSm90 = 8;  // of a block, one KV head
inline constexpr int kClusterColumns = kClusterRowsSm90 * kMaxClusters;
inline constexpr int kClusterKeysSm90 = 64;    // of a ring entry, read by one warpgroup
inline constexpr int kClusterStagesSm90 = 8;   // 128 KiB at head_dim 128, beside 64 of means
inline constexpr int kClusterTurnBarrier = 1;  // named barriers 1, 2: turn of warpgroup 0, 1

// What a launch adds to ClusterScoreArgs, whose own tiles and chunks are those of cluster_scores.
struct ClusterGridSm90 {
  TensorMap means;  // [num_kv_heads, rows * kMaxClusters, head_dim], boxes of kClusterColumns rows
  TensorMap k;      // [num_kv_heads, seqlen, head_dim], boxes of kClusterKeysSm90 rows
  std::int32_t num_row_tiles = 0;  // of kClusterRowsSm90 rows
  std::int32_t num_key_chunks = 0;
  std::int32_t chunk_keys = 0;  // a multiple of 2 kClusterKeysSm90
};

// `chunk_keys` keys a block; make_map(tensor, box rows) encodes a map.
template <class MakeMap>
ClusterGridSm90 cluster_grid_sm90(const KeyScoreArgs& args, int head_dim, int chunk_keys,
                                  const MakeMap& make_map) {
  const HistoryShape& shape = args.shape;
  const int rows = (args.end_segment - args.first_segment) * shape.lists_per_kv_head;
  const auto longest = static_cast<int>(shape.history_length(args.end_segment - 1));
  return {.means = make_map(mapped_heads(args.means, shape.num_kv_heads,
                                         static_cast<std::int64_t>(shape.num_segments) *
                                             shape.lists_per_kv_head * kMaxClusters,
                                         head_dim),
                            kClusterColumns),
          .k = make_map(mapped_heads(args.k, shape.num_kv_heads, shape.seqlen, head_dim),
                        kClusterKeysSm90),
          .num_row_tiles = ceil_div(rows, kClusterRowsSm90),
          .num_key_chunks = ceil_div(longest, chunk_keys),
          .chunk_keys = chunk_keys};
}
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

template <int kHeadDim>
struct SharedClusterScoresSm90 {
  alignas(1024) unsigned char means[tile_bytes(kClusterColumns, kHeadDim)];
  alignas(1024) unsigned char k[kClusterStagesSm90][tile_bytes(kClusterKeysSm90, kHeadDim)];
  Barrier means_full;
  ProductRing<kClusterStagesSm90> ring;
  alignas(16) float bias[kClusterColumns];  // log2 weight + kLogitShift
  std::uint16_t* target[kClusterRowsSm90];  // scores of the row
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
    num_tiles_ = keys <= 0 ? 0 : 2 * ceil_div(keys, 2 * kClusterKeysSm90);
  }

  S2O_DEVICE void run() {
    if (num_tiles_ == 0) return;
    if (thread_index() == 0) {
      barrier_init(&s_.means_full, 1);
      s_.ring.init(4);
    }
    if (thread_index() < kClusterColumns) describe_column(thread_index());
    sync_block(kProductThreads);
    if (warp_index() == kFillingWarp) {
      if (lane_index() == 0) fill();
    } else {
      consume();
    }
  }

 private:
  static constexpr int kPanels = kHeadDim / kPanelColumns;
  static constexpr int kClusterTiles = kMaxClusters / 8;  // of 8 columns
  static constexpr int kPairs = kClusterRowsSm90 / 2;

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
    s_.target[r] = args_.scores +
                   (list_of(row) - args_.first_kv_head * args_.shape.lists_per_kv_head) *
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

  S2O_DEVICE void consume() {
    const int warpgroup = consumer_warpgroup();
    const auto turn_of = [](int i) { return kClusterTurnBarrier + i; };
    float d[kClusterColumns / 8][4];
    if (warpgroup == 1) arrive_named(turn_of(0), kProductConsumers * 128);
    barrier_wait(&s_.means_full, 0);
    for (int tile = warpgroup; tile < num_tiles_; tile += kProductConsumers) {
      const int key = first_key_ + tile * kClusterKeysSm90 + key_of_lane();
      const float key_bias = bias_of_key(key);
      s_.ring.wait(tile);
      sync_named(turn_of(warpgroup), kProductConsumers * 128);
      pin_registers(d);
      issue_product<Element, kPanels>(d, shared_address(s_.k[tile % kClusterStagesSm90]),
                                      kClusterKeysSm90, shared_address(s_.means), false);
      arrive_named(turn_of(1 - warpgroup), kProductConsumers * 128);
      warpgroup_wait<0>();
      pin_registers(d);
      s_.ring.give_back(tile);
      score_keys(d, key, key_bias);
    }
    publish_ranges();
  }

  // Of the quad that holds rows i and i + 8 of the warp's 16, lane q stores key i + 8 (q % 2) of
  // list row q / 2 of a pair.
  S2O_DEVICE static int key_of_lane() {
    return warp_index() % 4 * 16 + lane_index() % 2 * 8 + lane_index() / 4;
  }
  S2O_DEVICE static int row_of_lane(int pair) { return 2 * pair + lane_index() % 4 / 2; }
  S2O_DEVICE float bias_of_key(int key) const {
    if (args_.key_bias == nullptr || key >= args_.shape.seqlen) return 0.0f;
    return load_global(args_.key_bias + kv_head_ * args_.shape.seqlen + key);
  }

  S2O_DEVICE void score_keys(float (&d)[kClusterColumns / 8][4], int key, float key_bias) {
#pragma unroll
    for (int pair = 0; pair < kPairs; ++pair) {
      float sum[4];
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        add_bias(d, 2 * pair + r);
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          sum[2 * r + i] = cluster_sum(&d[(2 * pair + r) * kClusterTiles], i, 0.0f);
        }
      }
      const float total = transposed_quad_sum(sum);
      float score = log2_fast(total);
      if (any_lane(!is_normal_sum(total))) score = careful_scores(d, pair);
      store(pair, key, (score - kLogitShift) * kLn2 + key_bias);
    }
  }
  S2O_DEVICE void add_bias(float (&d)[kClusterColumns / 8][4], int row) const {
#pragma unroll
    for (int n = 0; n < kClusterTiles; ++n) {
      const int column = row * kMaxClusters + n * 8 + lane_index() % 4 * 2;
      const FloatPair bias = load_shared_pair(&s_.bias[column]);
      float(&tile)[4] = d[row * kClusterTiles + n];
      tile[0] += bias.low;
      tile[1] += bias.high;
      tile[2] += bias.low;
      tile[3] += bias.high;
    }
  }
  S2O_DEVICE static float careful_scores(const float (&d)[kClusterColumns / 8][4], int pair) {
    float score = 0.0f;
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const float own = careful_cluster_score(&d[(2 * pair + j / 2) * kClusterTiles], j % 2);
      if (lane_index() % 4 == j) score = own;
    }
    return score;
  }

  S2O_DEVICE void store(int pair, int key, float score) {
    const int r = row_of_lane(pair);
    if (key >= s_.end_key[r]) return;
    const std::uint32_t both = pack_pair<Fp16>(score, score);
    largest_[pair] = max_pairs(largest_[pair], both);
    smallest_[pair] = min_pairs(smallest_[pair], both);
    s_.target[r][key] = static_cast<std::uint16_t>(both & 0xffffu);
  }

  S2O_DEVICE void publish_ranges() {
#pragma unroll
    for (int pair = 0; pair < kPairs; ++pair) {
#pragma unroll
      for (int mask = 1; mask < 32; mask *= 2) {
        if (mask == 2) continue;  // another row
        largest_[pair] = max_pairs(largest_[pair], shuffle_xor(largest_[pair], mask));
        smallest_[pair] = min_pairs(smallest_[pair], shuffle_xor(smallest_[pair], mask));
      }
      const int row = first_row_ + row_of_lane(pair);
      if (lane_index() % 2 != 0 || lane_index() >= 4 || row >= end_row_ ||
          first_key_ >= s_.end_key[row_of_lane(pair)]) {
        continue;
      }
      publish_score_range(args_, list_of(row), row / args_.shape.lists_per_kv_head,
                          unpack_low<Fp16>(largest_[pair]), unpack_low<Fp16>(smallest_[pair]));
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
  int num_tiles_;  // of keys, even
  std::uint32_t largest_[kPairs] = {0xfc00fc00u, 0xfc00fc00u, 0xfc00fc00u, 0xfc00fc00u};
  std::uint32_t smallest_[kPairs] = {0x7c007c00u, 0x7c007c00u, 0x7c007c00u, 0x7c007c00u};
};

}  // namespace s2o::device
