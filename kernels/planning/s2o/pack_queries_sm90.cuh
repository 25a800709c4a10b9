// Queries in e4m3 with their estimated normalisers (PackQueriesArgs). A block of threads holds a
// tile of queries of one head after another of a KV head's group and walks steps of 64 keys: the
// tile's own, those of the window before it, the sink, then samples. Two warpgroups have 64 queries
// each, two more the same queries and every other step: exponentials of some run under products of
// others. Of two warpgroups with the same queries one adds up and packs a head, the other the next.
#pragma once

#include "kernels/device/e4m3_sm90.cuh"
#include "kernels/planning/launch.cuh"
#include "kernels/planning/s2o/lse_rows.cuh"
#include "kernels/planning/s2o/row_ops.h"
#include "kernels/planning/shared/product_sm90.cuh"

namespace s2o::device {

inline constexpr int kNearConsumers = 4;
inline constexpr int kNearRows = kRankedRows;
inline constexpr int kNearKeys = 64;  // of a step
inline constexpr int kNearStages = 8;
inline constexpr int kNearSumBarrier =
    1;  // named barriers 1 to 4: of two warpgroups of the same rows

// Boxes of kNearRows queries, of kNearKeys keys.
struct NearMaps {
  TensorMap q;        // [num_q_heads, seqlen, head_dim]
  TensorMap k;        // [num_kv_heads, seqlen, head_dim]
  TensorMap samples;  // [num_kv_heads, num_samples, head_dim]
};
inline NearMaps near_maps(const PackQueriesArgs& args, int head_dim, const AddedBy& by) {
  const HistoryShape& shape = args.shape;
  const auto map = [&](const void* x, int heads, std::int64_t rows, int box_rows) {
    return by.tensor_map(mapped_heads(x, heads, rows, head_dim), box_rows);
  };
  // Where there are no samples, a map that nobody uses.
  const bool has_samples = args.num_samples > 0;
  return {.q = map(args.q, shape.num_lists(), shape.seqlen, kNearRows),
          .k = map(args.k, shape.num_kv_heads, shape.seqlen, kNearKeys),
          .samples = map(has_samples ? args.samples : args.k, shape.num_kv_heads,
                         has_samples ? args.num_samples : shape.seqlen, kNearKeys)};
}

template <int kHeadDim>
struct SharedNear {
  static constexpr int kQueryBuffers = 2;
  alignas(1024) unsigned char q[kQueryBuffers][tile_bytes(kNearRows, kHeadDim)];
  alignas(1024) unsigned char k[kNearStages][tile_bytes(kNearKeys, kHeadDim)];
  // Of the KV head; what stands for columns that are no dimensions is not read.
  alignas(16) float key_means[kHeadDim];
  alignas(16) float scales[kPackedColumns];
  alignas(16) std::int32_t places[kPackedColumns];  // place_of the dimensions
  float largest[2][kNearRows];  // of the warpgroups that leave a head to the others; heads take
  float sums[2][kNearRows];     // turns
  ProductRing<kQueryBuffers> queries;
  ProductRing<kNearStages> ring;
};

template <class Element, int kHeadDim>
class PackQueriesSm90 {
 public:
  S2O_DEVICE PackQueriesSm90(const PackQueriesArgs& args, const NearMaps& maps)
      : args_(args), maps_(maps), s_(*reinterpret_cast<SharedNear<kHeadDim>*>(shared_memory())) {
    // Long histories first.
    const HistoryShape& shape = args.shape;
    const int parts = shape.lists_per_kv_head / args.heads_of_block;
    const int block = block_index() / parts;
    segment_ = args.tiles.at(args.tiles.count() - 1 - block / shape.num_kv_heads);
    kv_head_ = block % shape.num_kv_heads;
    first_head_ = block_index() % parts * args.heads_of_block;
    end_head_ = first_head_ + args.heads_of_block;
    history_ = static_cast<int>(shape.history_length(segment_));
    window_steps_ = ceil_div(segment_ * kNearRows - history_, kNearKeys);
    own_steps_ = kNearRows / kNearKeys;
    sink_steps_ = ceil_div(min_of(args.sink, history_), kNearKeys);
    const auto stride = static_cast<int>(args.sample_stride);
    first_sample_ = ceil_div(args.sink, stride);
    end_sample_ = history_ / stride;
    if (end_sample_ > args.num_samples) end_sample_ = static_cast<int>(args.num_samples);
    const int samples = end_sample_ - first_sample_;
    near_steps_ = own_steps_ + window_steps_ + sink_steps_;
    steps_ = near_steps_ + (samples > 0 ? ceil_div(samples, kNearKeys) : 0);
    sample_weight_ =
        samples > 0
            ? log2_fast(static_cast<float>(history_ - args.sink) / static_cast<float>(samples))
            : 0.0f;
  }

  S2O_DEVICE void run() {
    if (history_ == 0) return;
    load_profile();
    if (thread_index() == 0) {
      s_.queries.init(kNearConsumers * 4);
      s_.ring.init(kNearConsumers / 2 * 4);
    }
    sync_block(product_threads(kNearConsumers));
    run_product<kNearConsumers>([&] { fill(); }, [&](int warpgroup) { consume(warpgroup); });
  }

 private:
  static_assert(kNearRows == 2 * kNearKeys);
  static constexpr int kPanels = kHeadDim / kPanelColumns;
  static constexpr int kColumnTiles = kNearKeys / 8;
  using Shared = SharedNear<kHeadDim>;
  using Ring = ProductRing<kNearStages>;

  S2O_DEVICE int group() const { return args_.shape.lists_per_kv_head; }

  S2O_DEVICE void load_profile() const {
    constexpr int kThreads = product_threads(kNearConsumers);
    const RowProfile& profile = args_.profile;
    for (int i = thread_index(); i < kPackedColumns; i += kThreads) {
      const int place = kv_head_ * kPackedColumns + i;
      s_.places[i] = i < kRankedDims ? place_of(load_global(profile.dims + place)) : 0;
      s_.scales[i] = i < kRankedDims ? load_global(profile.query_scales + place) : 0.0f;
    }
    for (int d = thread_index(); d < kHeadDim; d += kThreads) {
      s_.key_means[d] = load_global(profile.key_means + kv_head_ * kHeadDim + d);
    }
  }

  // Heads of the group that rank something are shown to the consumers one after the other.
  S2O_DEVICE int head_from(int head) const {
    while (head < end_head_ && ranks_nothing(head)) ++head;
    return head;
  }
  S2O_DEVICE bool ranks_nothing(int head) const {
    return args_.reaches != nullptr && !is_whole_tile(segment_, args_.shape.num_segments) &&
           load_global(&args_.reaches[kv_head_ * group() + head]) == kNothingFar;
  }

  S2O_DEVICE void fill() {
    int entry = 0;
    int head = head_from(first_head_);
    if (head < end_head_) fill_queries(0, head);
    for (int shown = 0; head < end_head_; ++shown) {
      const int next = head_from(head + 1);
      for (int step = 0; step < steps_; ++step, ++entry) fill_keys(entry, step);
      if (next < end_head_) fill_queries(shown + 1, next);
      head = next;
    }
  }
  S2O_DEVICE void fill_queries(int shown, int head) {
    unsigned char* const q = s_.q[shown % Shared::kQueryBuffers];
    load_rows(q, kNearRows, &maps_.q, s_.queries.begin_fill(shown, sizeof(s_.q[0])),
              segment_ * kNearRows, kv_head_ * group() + head);
  }
  S2O_DEVICE void fill_keys(int entry, int step) {
    unsigned char* const k = s_.k[Ring::stage_of(entry)];
    Barrier* const barrier = s_.ring.begin_fill(entry, sizeof(s_.k[0]));
    const bool sampled = step >= near_steps_;
    load_rows(k, kNearKeys, sampled ? &maps_.samples : &maps_.k, barrier, first_row(step),
              kv_head_);
  }
  S2O_DEVICE static void load_rows(unsigned char* target, int rows, const TensorMap* map,
                                   Barrier* barrier, int row, int head) {
#pragma unroll
    for (int panel = 0; panel < kPanels; ++panel) {
      load_box_async(shared_address(target + panel * rows * kPanelRowBytes), map, barrier,
                     panel * kPanelColumns, row, head);
    }
  }
  // Row of K, or of the samples, at which a step begins.
  S2O_DEVICE int first_row(int step) const {
    if (step < own_steps_) return segment_ * kNearRows + step * kNearKeys;
    if (step < own_steps_ + window_steps_) return history_ + (step - own_steps_) * kNearKeys;
    if (step < near_steps_) return (step - own_steps_ - window_steps_) * kNearKeys;
    return (step - near_steps_) * kNearKeys;
  }
  // Columns [first, end) of a step count, of the own segment up to the row.
  struct Columns {
    int first, end;
  };
  S2O_DEVICE Columns columns_of(int step) const {
    const int begin = first_row(step);
    if (step < own_steps_) return {0, kNearKeys};
    if (step < own_steps_ + window_steps_)
      return {0, min_of(kNearKeys, segment_ * kNearRows - begin)};
    if (step < near_steps_) return {0, min_of(args_.sink, history_) - begin};
    return {first_sample_ - begin, end_sample_ - begin};
  }

  S2O_DEVICE void consume(int warpgroup) {
    const int rows = warpgroup % 2;  // which half of the queries
    const int turn = warpgroup / 2;  // which of two steps
    const std::uint64_t first_keys = panel_descriptor(shared_address(s_.k));
    constexpr int kStageBytes = sizeof(s_.k[0]);
    float logits[kColumnTiles][4];
    int entry = 0;
    int shown = 0;
    for (int head = head_from(first_head_); head < end_head_; head = head_from(head + 1), ++shown) {
      s_.queries.wait(shown);
      const std::uint64_t queries =
          panel_descriptor(shared_address(s_.q[shown % Shared::kQueryBuffers]) +
                           static_cast<std::uint32_t>(rows * 64 * kPanelRowBytes));
      LseSum sums[2];
      for (int step = (entry + turn) % 2; step < steps_; step += 2) {
        s_.ring.wait(entry + step);
        if (step < own_steps_ && step > rows) {  // keys behind all of these queries
          s_.ring.give_back(entry + step);
          continue;
        }
        pin_registers(logits);
        issue_product<Element, kPanels>(
            logits, queries, kNearRows,
            descriptor_at(first_keys, Ring::stage_of(entry + step) * kStageBytes), kNearKeys,
            false);
        warpgroup_wait<0>();
        pin_registers(logits);
        s_.ring.give_back(entry + step);
        add_columns(step, rows, logits, sums);
      }
      entry += steps_;
      const int barrier = kNearSumBarrier + rows + shown % 2 * 2;
      if ((turn + shown) % 2 == 1) {
        leave(rows, shown % 2, sums);
        arrive_named(barrier, 256);
      } else {
        sync_named(barrier, 256);
        pack(head, rows, shown, sums);
      }
      s_.queries.give_back(shown);  // not before: then sums two heads later have a place
    }
  }

  S2O_DEVICE static int row_of(int rows, int i) {
    return rows * 64 + warp_index() % 4 * 16 + lane_index() / 4 + i * 8;
  }

  S2O_DEVICE void add_columns(int step, int rows, const float (&logits)[kColumnTiles][4],
                              LseSum (&sums)[2]) const {
    const float scale = args_.softmax_scale * kLog2E;
    const float bias = step >= near_steps_ ? sample_weight_ : 0.0f;
    const Columns columns = columns_of(step);
    const bool whole = step >= own_steps_ && columns.first <= 0 && columns.end >= kNearKeys;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      float x[2 * kColumnTiles];
#pragma unroll
      for (int j = 0; j < 2 * kColumnTiles; ++j) x[j] = logits[j / 2][2 * i + j % 2];
      if (!whole) {
        // Of the own segment up to the row itself.
        const int end = step < own_steps_ ? row_of(rows, i) + 1 - step * kNearKeys : columns.end;
        const std::uint32_t counts = own_columns_below(end) & ~own_columns_below(columns.first);
#pragma unroll
        for (int j = 0; j < 2 * kColumnTiles; ++j) {
          if ((counts >> j & 1u) == 0) x[j] = kNoTerm;
        }
      }
      sums[i].add(x, scale, bias);
    }
  }
  // A bit for each of the lane's columns.
  S2O_DEVICE static std::uint32_t own_columns_below(int limit) {
    const int within = min_of(limit - lane_index() % 4 * 2, kNearKeys);
    return within <= 0 ? 0u : (1u << (within / 8 * 2 + min_of(within % 8, 2))) - 1u;
  }

  // Over the quad that holds the row.
  struct QuadSum {
    float largest, sum;
  };
  S2O_DEVICE static QuadSum of_quad(const LseSum& sum) {
    const float all = quad_max(sum.largest);
    return {all, quad_sum(sum.sum * exp2_fast(sum.largest - all))};
  }
  // NOTE: places are written again two heads later, whose queries come when all have given theirs
  // back.
  S2O_DEVICE void leave(int rows, int buffer, const LseSum (&sums)[2]) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const QuadSum own = of_quad(sums[i]);
      if (lane_index() % 4 != 0) continue;
      s_.largest[buffer][row_of(rows, i)] = own.largest;
      s_.sums[buffer][row_of(rows, i)] = own.sum;
    }
  }
  // The warp's 16 queries: a lane makes columns [16 c, 16 c + 16), c = lane % 4, of its two rows.
  S2O_DEVICE void pack(int head, int rows, int shown, const LseSum (&sums)[2]) const {
    const unsigned char* const q = s_.q[shown % Shared::kQueryBuffers];
    const int c = lane_index() % 4;
    const std::int64_t tile =
        std::int64_t{kv_head_ * group() + head} * args_.shape.num_segments + segment_;
    const float first = normalizer(row_of(rows, 0), shown % 2, sums[0]);
    const float second = normalizer(row_of(rows, 1), shown % 2, sums[1]);
#pragma unroll 1
    for (int i = 0; i < 2; ++i) {
      const int row = row_of(rows, i);
      const bool exists = std::int64_t{segment_} * kNearRows + row < args_.shape.seqlen;
      const float dot = quad_sum(part_of_dot(q, row)) * (args_.softmax_scale * kLog2E);
      const float shift = kScoreBias - ((i == 0 ? first : second) - dot);
      if (exists && !is_finite(shift)) {
        atomic_max(args_.bad_row, ~static_cast<std::uint32_t>(tile));
      }
      store_global_16(args_.packed + tile * kPackedQueryBytes + (c * kNearRows + row) * 16,
                      columns(q, row, c, packed_shift(exists ? shift : -kLargestE4m3)));
    }
  }
  S2O_DEVICE float normalizer(int row, int buffer, const LseSum& sum) const {
    const QuadSum own = of_quad(sum);
    const float other = s_.largest[buffer][row];
    const float all = max_of(own.largest, other);
    return all + log2_fast(own.sum * exp2_fast(own.largest - all) +
                           s_.sums[buffer][row] * exp2_fast(other - all));
  }
  // Of the query and the mean key, over a quarter of the dimensions; not finite if the query is
  // not. Lanes begin at chunks of different banks.
  S2O_DEVICE float part_of_dot(const unsigned char* q, int row) const {
    constexpr int kChunks = kHeadDim / kChunkElements / 4;
    const int part = lane_index() % 4;
    float sum = 0.0f;
#pragma unroll
    for (int i = 0; i < kChunks; ++i) {
      const int chunk = part * kChunks + (i + part) % kChunks;
      const Words4 words =
          load_shared_16(shared_address(q) +
                         static_cast<std::uint32_t>(swizzled_chunk_offset(kNearRows, row, chunk)));
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const Words4 means =
            load_shared_16(shared_address(&s_.key_means[chunk * kChunkElements + half * 4]));
#pragma unroll
        for (int w = 0; w < 2; ++w) {
          const std::uint32_t pair = words.word[half * 2 + w];
          sum = fused(unpack_low<Element>(pair), bits_float(means.word[2 * w]), sum);
          sum = fused(unpack_high<Element>(pair), bits_float(means.word[2 * w + 1]), sum);
        }
      }
    }
    return sum;
  }
  // In two parts, the last columns.
  S2O_DEVICE static std::uint32_t packed_shift(float shift) {
    const std::uint32_t high = pack_e4m3(shift * (1.0f / kShiftHigh), 0.0f) & 0xffu;
    const float rest = shift - kShiftHigh * unpack_e4m3(high);
    return high | pack_e4m3(0.0f, rest * (1.0f / kShiftLow));
  }
  S2O_DEVICE Words4 columns(const unsigned char* q, int row, int c, std::uint32_t last) const {
    const std::uint32_t first_of_row =
        shared_address(q) + static_cast<std::uint32_t>(row * kPanelRowBytes);
    const auto swizzle = static_cast<std::uint32_t>(row % 8 * kChunkBytes);
    Words4 result;
#pragma unroll
    for (int w = 0; w < 4; ++w) {
      const int first = c * 16 + w * 4;
      const Words4 places = load_shared_16(shared_address(&s_.places[first]));
      const Words4 scales = load_shared_16(shared_address(&s_.scales[first]));
      float x[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const std::uint32_t element = load_shared_2(first_of_row + (places.word[i] ^ swizzle));
        x[i] = unpack_low<Element>(element) * bits_float(scales.word[i]);
      }
      const std::uint32_t upper = pack_e4m3(x[2], x[3]);
      result.word[w] = pack_e4m3(x[0], x[1]) | (first + 2 < kRankedDims ? upper : last) << 16;
    }
    return result;
  }
  // Of a dimension in row 0; rows exchange chunks by their number (swizzled_chunk_offset).
  S2O_DEVICE static std::int32_t place_of(std::int32_t d) {
    return swizzled_chunk_offset(kNearRows, 0, d / kChunkElements) + d % kChunkElements * 2;
  }

  const PackQueriesArgs& args_;
  const NearMaps& maps_;
  Shared& s_;
  int segment_;
  int kv_head_;
  int first_head_, end_head_;  // of the group
  int history_;
  int own_steps_, window_steps_, sink_steps_, near_steps_, steps_;
  int first_sample_, end_sample_;
  float sample_weight_;
};

template <class Element, int kHeadDim>
struct PackQueriesKernel {
  static constexpr const char* kName = "planning: packed queries";
  static constexpr int kThreads = product_threads(kNearConsumers);
  static constexpr int kMinBlocks = 1;
  static constexpr int kBlockRegisters = block_registers(kNearConsumers);
  using Added = NearMaps;
  static Added added(const PackQueriesArgs& args, const AddedBy& by) {
    return near_maps(args, kHeadDim, by);
  }
  static Grid grid(const PackQueriesArgs& args, const Added& /*added*/) {
    return {
        .blocks = std::int64_t{args.shape.num_lists()} / args.heads_of_block * args.tiles.count(),
        .shared_bytes = sizeof(SharedNear<kHeadDim>)};
  }
  S2O_DEVICE static void run(const PackQueriesArgs& args, const Added& added) {
    PackQueriesSm90<Element, kHeadDim>(args, added).run();
  }
};

}  // namespace s2o::device
