// Clusters of the queries of a segment (cluster_ops.h): one block of threads a row, all iterations
// inside. Queries pass through shared memory kClusterTile at a time; each warp assigns 16 of them
// by a product with the means, then sums all of them over its own columns by a product with the
// matrix of memberships. No sum depends on the order of threads.
//
// Means are kept as two 16-bit terms, so that a query changes its cluster against a sort in fp32
// only where two means are equally near to 2^-16.
#pragma once

#include "kernels/device/cp_async.cuh"
#include "kernels/device/layout.cuh"
#include "kernels/device/mma_sm80.cuh"
#include "kernels/planning/launch.cuh"
#include "kernels/planning/s2o/cluster_ops.h"
#include "kernels/planning/shared/platform_planning.cuh"

namespace s2o::device {

inline constexpr int kClusterThreads = 256;
inline constexpr int kClusterWarps = kClusterThreads / 32;
inline constexpr int kClusterTile = 16 * kClusterWarps;

template <int kHeadDim>
struct SharedClusters {
  alignas(128) unsigned char q[2][tile_bytes(kClusterTile, kHeadDim)];
  alignas(128) unsigned char means[2][tile_bytes(kMaxClusters, kHeadDim)];  // sum of both terms
  float half_norms[kMaxClusters];
  float warp_norms[kClusterWarps][kMaxClusters];
  float warp_totals[kClusterWarps][kMaxClusters];
  float totals[kMaxClusters];
  std::uint32_t references[kMaxClusters];  // ordered bits of the largest -lse of a cluster
  float tile_factors[kMaxClusters];        // of the sums, once the references have moved
  std::int32_t cluster[kClusterTile];      // -1 beyond the row
  float weight[kClusterTile];
};

template <class Element, int kHeadDim>
class ClusterQueries {
 public:
  S2O_DEVICE explicit ClusterQueries(const ClusterArgs& args)
      : args_(args), s_(*reinterpret_cast<SharedClusters<kHeadDim>*>(shared_memory())) {
    const HistoryShape& shape = args.shape;
    list_ = block_index() / shape.num_segments;
    segment_ = block_index() % shape.num_segments;
    begin_ = segment_ * shape.segment_size;
    const std::int64_t left = shape.seqlen - begin_;
    per_head_ = static_cast<int>(left < shape.segment_size ? left : shape.segment_size);
    num_rows_ = per_head_ * args.heads_per_list;
    num_clusters_ = min_of(args.num_clusters, num_rows_);
  }

  S2O_DEVICE void run() {
    if (args_.shape.history_length(segment_) == 0) return;  // nothing to rank
    load_tile(0);
    copy_async_commit();
    seed_means();
    const int tiles = ceil_div(num_rows_, kClusterTile);
    for (int iteration = 0; iteration < args_.iterations; ++iteration) {
      const bool last = iteration + 1 == args_.iterations;
      start_iteration();
      for (int tile = 0; tile < tiles; ++tile) {
        copy_async_wait<0>();
        sync_block(kClusterThreads);  // the tile and the means are there
        // Tiles of all iterations follow each other through the two buffers.
        const int step = iteration * tiles + tile;
        if (step + 1 < args_.iterations * tiles) load_tile(step + 1);
        copy_async_commit();
        assign(step % 2, tile * kClusterTile);
        sync_block(kClusterThreads);
        if (last) weigh();
        last ? accumulate<true>(step % 2) : accumulate<false>(step % 2);
      }
      sync_block(kClusterThreads);
      add_totals();
      last ? write() : move_means();
    }
    copy_async_wait<0>();
  }

 private:
  static constexpr int kChunks = kHeadDim / kChunkElements;
  static constexpr int kRowsPerPass = kClusterThreads / kChunks;
  static constexpr int kColumns = kHeadDim / kClusterWarps;  // of a warp's sums
  static constexpr int kColumnTiles = kColumns / 8;
  static constexpr int kClusterTiles = kMaxClusters / 16;

  S2O_DEVICE const std::uint16_t* query(int row) const {
    const std::int64_t head = list_ * args_.heads_per_list + row / per_head_;
    return static_cast<const std::uint16_t*>(args_.q) +
           (head * args_.shape.seqlen + begin_ + row % per_head_) * kHeadDim;
  }
  S2O_DEVICE void load_tile(int step) const {
    const int first = step % ceil_div(num_rows_, kClusterTile) * kClusterTile;
    const int chunk = thread_index() % kChunks;
#pragma unroll 4
    for (int row = thread_index() / kChunks; row < kClusterTile; row += kRowsPerPass) {
      const bool exists = first + row < num_rows_;
      copy_async_16(shared_address(s_.q[step % 2]) +
                        static_cast<std::uint32_t>(swizzled_chunk_offset(kClusterTile, row, chunk)),
                    query(exists ? first + row : 0) + chunk * kChunkElements, exists);
    }
  }

  // Rows at equal distances, exact in 16 bits.
  S2O_DEVICE void seed_means() {
    const int chunk = thread_index() % kChunks;
    for (int c = thread_index() / kChunks; c < kMaxClusters; c += kRowsPerPass) {
      Words4 words = {};
      float square = 0.0f;
      if (c < num_clusters_) {
        const auto row = static_cast<int>((2 * static_cast<std::int64_t>(c) + 1) * num_rows_ /
                                          (2 * num_clusters_));
        words = load_global_16(query(row) + chunk * kChunkElements);
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const float low = unpack_low<Element>(words.word[i]);
          const float high = unpack_high<Element>(words.word[i]);
          square = fused(low, low, fused(high, high, square));
        }
      }
      const int place = swizzled_chunk_offset(kMaxClusters, c, chunk);
      *reinterpret_cast<Words4*>(s_.means[0] + place) = words;
      *reinterpret_cast<Words4*>(s_.means[1] + place) = Words4{};
#pragma unroll
      for (int mask = 1; mask < kChunks; mask *= 2) square += shuffle_xor(square, mask);
      if (chunk == 0) s_.half_norms[c] = 0.5f * square;
    }
  }

  S2O_DEVICE void start_iteration() {
#pragma unroll
    for (int t = 0; t < kClusterTiles; ++t) {
#pragma unroll
      for (int n = 0; n < kColumnTiles; ++n) {
#pragma unroll
        for (int e = 0; e < 4; ++e) sum_[t][n][e] = 0.0f;
      }
    }
    total_ = 0.0f;
    if (thread_index() < kMaxClusters) s_.references[thread_index()] = 0;
  }

  // The nearest mean m of q has the largest q . m - |m|^2 / 2; ties go to the lower one.
  S2O_DEVICE void assign(int buffer, int first) {
    float closeness[kMaxClusters / 8][4] = {};
    const auto lane = static_cast<unsigned>(lane_index());
    const MatrixPosition a_source = ldmatrix_a_source(lane);
    const MatrixPosition b_source = ldmatrix_b_source(lane);
    const std::uint32_t q_lane = swizzled_lane_address(
        shared_address(s_.q[buffer]), warp_index() * 16 + a_source.row, a_source.column);
#pragma unroll
    for (int part = 0; part < kHeadDim / 16; ++part) {
      std::uint32_t a[4];
      load_matrix_x4(a, swizzled_step_address(q_lane, kClusterTile, 0, 2 * part));
#pragma unroll
      for (int term = 0; term < 2; ++term) {
        const std::uint32_t mean_lane =
            swizzled_lane_address(shared_address(s_.means[term]), b_source.row, b_source.column);
#pragma unroll
        for (int n = 0; n < kMaxClusters / 8; n += 2) {
          std::uint32_t b[4];
          load_matrix_x4(b, swizzled_step_address(mean_lane, kMaxClusters, n * 8, 2 * part));
          multiply_accumulate<Element>(closeness[n], a, b[0], b[1]);
          multiply_accumulate<Element>(closeness[n + 1], a, b[2], b[3]);
        }
      }
    }
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      float best = kNegativeInfinity;
      int nearest = 0;
#pragma unroll
      for (int j = 0; j < kMaxClusters / 4; ++j) {
        const int c = j / 2 * 8 + lane_index() % 4 * 2 + j % 2;
        const float x = closeness[j / 2][2 * i + j % 2] - s_.half_norms[c];
        if (c < num_clusters_ && x > best) {
          best = x;
          nearest = c;
        }
      }
#pragma unroll
      for (int mask = 1; mask < 4; mask *= 2) {
        const float other = shuffle_xor(best, mask);
        const int other_nearest = shuffle_xor(nearest, mask);
        if (other > best || (other == best && other_nearest < nearest)) {
          best = other;
          nearest = other_nearest;
        }
      }
      const int row = warp_index() * 16 + lane_index() / 4 + 8 * i;
      if (lane_index() % 4 == 0) {
        s_.cluster[row] = first + row < num_rows_ ? nearest : -1;
        s_.weight[row] = args_.lse != nullptr && first + row < num_rows_
                             ? -load_global(args_.lse + lse_place(first + row))
                             : 0.0f;
        if (!(best > kNegativeInfinity)) s_.weight[row] = bits_float(0x7fc00000u);  // not finite
      }
    }
    if (args_.lse == nullptr) return;
    sync_warp();
    const int row = warp_index() * 16 + lane_index();
    if (lane_index() < 16 && s_.cluster[row] >= 0) {
      atomic_max(&s_.references[s_.cluster[row]], ordered_bits(s_.weight[row]));
    }
  }
  S2O_DEVICE std::int64_t lse_place(int row) const {
    const std::int64_t head = list_ * args_.heads_per_list + row / per_head_;
    return head * args_.shape.seqlen + begin_ + row % per_head_;
  }

  // Weights of the tile relative to the largest of their cluster so far, which may have grown.
  S2O_DEVICE void weigh() {
    if (thread_index() < kMaxClusters) {
      const std::uint32_t now = args_.lse != nullptr ? s_.references[thread_index()] : 0x80000000u;
      const bool had = reference_ != 0 && reference_ != now;
      s_.tile_factors[thread_index()] =
          had ? exp2_fast((ordered_float(reference_) - ordered_float(now)) * kLog2E) : 1.0f;
      reference_ = now;
    }
    if (thread_index() < kClusterTile && s_.cluster[thread_index()] >= 0) {
      const float reference =
          args_.lse != nullptr ? ordered_float(s_.references[s_.cluster[thread_index()]]) : 0.0f;
      s_.weight[thread_index()] = exp2_fast((s_.weight[thread_index()] - reference) * kLog2E);
    }
    sync_block(kClusterThreads);
    total_ *= s_.tile_factors[lane_index()];
#pragma unroll
    for (int t = 0; t < kClusterTiles; ++t) {
#pragma unroll
      for (int n = 0; n < kColumnTiles; ++n) {
#pragma unroll
        for (int e = 0; e < 4; ++e) sum_[t][n][e] *= s_.tile_factors[cluster_of(t, e)];
      }
    }
  }
  // Cluster and column of element e of this thread's sums.
  S2O_DEVICE static int cluster_of(int t, int e) { return t * 16 + lane_index() / 4 + e / 2 * 8; }
  S2O_DEVICE static int column_of(int n, int e) {
    return warp_index() * kColumns + n * 8 + lane_index() % 4 * 2 + e % 2;
  }

  template <bool kWeighted>
  S2O_DEVICE void accumulate(int buffer) {
    const auto lane = static_cast<unsigned>(lane_index());
    const MatrixPosition source = ldmatrix_b_transposed_source(lane);
#pragma unroll 2
    for (int part = 0; part < kClusterTile / 16; ++part) {
      std::uint32_t b[4];
      load_matrix_x4_transposed(
          b, shared_address(s_.q[buffer]) +
                 static_cast<std::uint32_t>(swizzled_chunk_offset(
                     kClusterTile, part * 16 + source.row,
                     warp_index() * kColumns / 8 + (kColumnTiles > 1 ? source.column : 0))));
#pragma unroll
      for (int t = 0; t < kClusterTiles; ++t) {
        std::uint32_t high[4];
        std::uint32_t low[4];
        membership<kWeighted>(t, part * 16, high, low);
#pragma unroll
        for (int n = 0; n < kColumnTiles; ++n) {
          multiply_accumulate<Element>(sum_[t][n], high, b[2 * n], b[2 * n + 1]);
          if constexpr (kWeighted) {
            multiply_accumulate<Element>(sum_[t][n], low, b[2 * n], b[2 * n + 1]);
          }
        }
      }
    }
    // Each lane has a cluster, each warp its own rows.
#pragma unroll
    for (int i = 0; i < 16; ++i) {
      const int row = warp_index() * 16 + i;
      const float weight = kWeighted ? s_.weight[row] : 1.0f;
      total_ += s_.cluster[row] == lane_index() ? weight : 0.0f;
    }
  }
  // 16 clusters times 16 rows of the tile: the weight where the row belongs to the cluster, as two
  // 16-bit terms.
  template <bool kWeighted>
  S2O_DEVICE void membership(int t, int first_row, std::uint32_t (&high)[4],
                             std::uint32_t (&low)[4]) const {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int row = first_row + lane_index() % 4 * 2 + i / 2 * 8;
      const int own = t * 16 + lane_index() / 4 + i % 2 * 8;
      float weight[2];
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        const bool member = s_.cluster[row + e] == own;
        weight[e] = member ? (kWeighted ? s_.weight[row + e] : 1.0f) : 0.0f;
      }
      high[i] = pack_pair<Element>(weight[0], weight[1]);
      low[i] = pack_pair<Element>(weight[0] - unpack_low<Element>(high[i]),
                                  weight[1] - unpack_high<Element>(high[i]));
    }
  }

  S2O_DEVICE void add_totals() {
    s_.warp_totals[warp_index()][lane_index()] = total_;
    sync_block(kClusterThreads);
    if (thread_index() < kMaxClusters) {
      float total = 0.0f;
#pragma unroll
      for (int warp = 0; warp < kClusterWarps; ++warp) {
        total += s_.warp_totals[warp][thread_index()];
      }
      s_.totals[thread_index()] = total;
    }
    sync_block(kClusterThreads);
  }

  // Sums to means for the next iteration; an empty cluster keeps its mean.
  S2O_DEVICE void move_means() {
#pragma unroll
    for (int t = 0; t < kClusterTiles; ++t) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const int c = cluster_of(t, 2 * i);
        const float total = s_.totals[c];
        float square = 0.0f;
#pragma unroll
        for (int n = 0; n < kColumnTiles; ++n) {
          const float low = sum_[t][n][2 * i] / total;
          const float high = sum_[t][n][2 * i + 1] / total;
          square = fused(low, low, fused(high, high, square));
          if (!(total > 0.0f)) continue;
          const int column = column_of(n, 0);
          const int place = swizzled_chunk_offset(kMaxClusters, c, column / 8) + column % 8 * 2;
          const std::uint32_t first = pack_pair<Element>(low, high);
          *reinterpret_cast<std::uint32_t*>(s_.means[0] + place) = first;
          *reinterpret_cast<std::uint32_t*>(s_.means[1] + place) = pack_pair<Element>(
              low - unpack_low<Element>(first), high - unpack_high<Element>(first));
        }
        square = quad_sum(square);
        if (lane_index() % 4 == 0) s_.warp_norms[warp_index()][c] = square;
      }
    }
    sync_block(kClusterThreads);
    const int c = thread_index();
    if (c >= kMaxClusters || !(s_.totals[c] > 0.0f)) return;
    float square = 0.0f;
#pragma unroll
    for (int warp = 0; warp < kClusterWarps; ++warp) square += s_.warp_norms[warp][c];
    s_.half_norms[c] = 0.5f * square;
  }

  S2O_DEVICE void write() const {
    const HistoryShape& shape = args_.shape;
    const std::int64_t kv_head = list_ / shape.lists_per_kv_head;
    const std::int64_t row = (kv_head * shape.num_segments + segment_) * shape.lists_per_kv_head +
                             list_ % shape.lists_per_kv_head;
    auto* const means = static_cast<std::uint16_t*>(args_.means) + row * kMaxClusters * kHeadDim;
    const float scale = args_.softmax_scale * kLog2E;
#pragma unroll
    for (int t = 0; t < kClusterTiles; ++t) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const int c = cluster_of(t, 2 * i);
        const float total = s_.totals[c];
        // An empty cluster has zero sums; a total that is not finite stays so.
        const float factor = total == 0.0f ? 0.0f : scale / total;
#pragma unroll
        for (int n = 0; n < kColumnTiles; ++n) {
          *reinterpret_cast<std::uint32_t*>(means + c * kHeadDim + column_of(n, 0)) =
              pack_pair<Element>(sum_[t][n][2 * i] * factor, sum_[t][n][2 * i + 1] * factor);
        }
      }
    }
    if (thread_index() >= kMaxClusters) return;
    const float total = s_.totals[thread_index()];
    const float reference = args_.lse != nullptr ? ordered_float(reference_) : 0.0f;
    args_.log2_weights[row * kMaxClusters + thread_index()] =
        total == 0.0f ? kNoWeight : fused(reference, kLog2E, log_natural(total) * kLog2E);
  }

  const ClusterArgs& args_;
  SharedClusters<kHeadDim>& s_;
  int list_;
  int segment_;
  std::int64_t begin_;
  int per_head_;
  int num_rows_;
  int num_clusters_;
  float sum_[kClusterTiles][kColumnTiles][4];  // of this warp's columns
  float total_;                                // of cluster lane_index(), over this warp's rows
  std::uint32_t reference_ = 0;                // of cluster thread_index(), as in weigh()
};

template <class Element, int kHeadDim>
struct ClusterQueriesKernel {
  static constexpr const char* kName = "planning: clusters of queries";
  static constexpr int kThreads = kClusterThreads;
  static constexpr int kMinBlocks = 2;
  static Grid grid(const ClusterArgs& args) {
    return {.blocks = std::int64_t{args.shape.num_lists()} * args.shape.num_segments,
            .shared_bytes = sizeof(SharedClusters<kHeadDim>)};
  }
  S2O_DEVICE static void run(const ClusterArgs& args) {
    ClusterQueries<Element, kHeadDim>(args).run();
  }
};

}  // namespace s2o::device
