// Estimated normalisers (RowNormalizerArgs) by warpgroup products: a block of threads holds a tile
// of queries of one head after another of a KV head's group and walks steps of 64 keys: the tile's
// own, those of the window before it, the sink, then samples. Two warpgroups have 64 queries each,
// two more the same queries and every other step: exponentials of some run under products of
// others.
#pragma once

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
inline NearMaps near_maps(const RowNormalizerArgs& args, int head_dim, const AddedBy& by) {
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
  float largest[2][kNearRows];  // of the two warpgroups that leave the sum to the others; heads
  float sums[2][kNearRows];     // take turns
  ProductRing<kQueryBuffers> queries;
  ProductRing<kNearStages> ring;
};

template <class Element, int kHeadDim>
class RowNormalizersSm90 {
 public:
  S2O_DEVICE RowNormalizersSm90(const RowNormalizerArgs& args, const NearMaps& maps)
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
    if (thread_index() == 0) {
      s_.queries.init(kNearConsumers * 4);
      s_.ring.init(kNearConsumers / 2 * 4);
    }
    sync_block(product_threads(kNearConsumers));
    run_product<kNearConsumers>([&] { fill(); }, [&](int warpgroup) { consume(warpgroup); });
  }

 private:
  static constexpr int kPanels = kHeadDim / kPanelColumns;
  static constexpr int kColumnTiles = kNearKeys / 8;
  using Shared = SharedNear<kHeadDim>;

  S2O_DEVICE int group() const { return args_.shape.lists_per_kv_head; }

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
    unsigned char* const k = s_.k[entry % kNearStages];
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
    float logit[kColumnTiles][4];
    int entry = 0;
    int shown = 0;
    for (int head = head_from(first_head_); head < end_head_; head = head_from(head + 1), ++shown) {
      s_.queries.wait(shown);
      LseSum sums[2];
      for (int step = (entry + turn) % 2; step < steps_; step += 2) {
        s_.ring.wait(entry + step);
        pin_registers(logit);
        issue_product<Element, kPanels>(
            logit,
            shared_address(s_.q[shown % Shared::kQueryBuffers]) +
                static_cast<std::uint32_t>(rows * 64 * kPanelRowBytes),
            kNearRows, shared_address(s_.k[(entry + step) % kNearStages]), kNearKeys, false);
        warpgroup_wait<0>();
        pin_registers(logit);
        s_.ring.give_back(entry + step);
        add_columns(step, rows, logit, sums);
      }
      entry += steps_;
      const int barrier = kNearSumBarrier + rows + shown % 2 * 2;
      if (turn == 1) {
        leave(rows, shown % 2, sums);
        arrive_named(barrier, 256);
      } else {
        sync_named(barrier, 256);
        write(head, rows, shown % 2, sums);
      }
      s_.queries.give_back(shown);  // not before: then sums two heads later have a place
    }
  }

  S2O_DEVICE static int row_of(int rows, int i) {
    return rows * 64 + warp_index() % 4 * 16 + lane_index() / 4 + i * 8;
  }

  S2O_DEVICE void add_columns(int step, int rows, const float (&logit)[kColumnTiles][4],
                              LseSum (&sums)[2]) const {
    const float scale = args_.softmax_scale * kLog2E;
    const float bias = step >= near_steps_ ? sample_weight_ : 0.0f;
    const Columns columns = columns_of(step);
    const bool whole = step >= own_steps_ && columns.first <= 0 && columns.end >= kNearKeys;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      // Of the own segment up to the row itself.
      const int end = step < own_steps_ ? row_of(rows, i) + 1 - step * kNearKeys : columns.end;
      float x[2 * kColumnTiles];
#pragma unroll
      for (int j = 0; j < 2 * kColumnTiles; ++j) {
        x[j] = fused(logit[j / 2][2 * i + j % 2], scale, bias);
      }
      if (!whole) {
#pragma unroll
        for (int j = 0; j < 2 * kColumnTiles; ++j) {
          const int column = j / 2 * 8 + lane_index() % 4 * 2 + j % 2;
          if (column < columns.first || column >= end) x[j] = kNoTerm;
        }
      }
      sums[i].add(x);
    }
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
  S2O_DEVICE void write(int head, int rows, int buffer, const LseSum (&sums)[2]) const {
    const std::int64_t q_head = kv_head_ * group() + head;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const QuadSum own = of_quad(sums[i]);
      const int row = row_of(rows, i);
      const float other = s_.largest[buffer][row];
      const float all = max_of(own.largest, other);
      const float sum =
          own.sum * exp2_fast(own.largest - all) + s_.sums[buffer][row] * exp2_fast(other - all);
      const std::int64_t token = static_cast<std::int64_t>(segment_) * kNearRows + row;
      if (lane_index() % 4 != 0 || token >= args_.shape.seqlen) continue;
      args_.log2_normalizers[q_head * args_.shape.seqlen + token] = all + log2_fast(sum);
    }
  }

  const RowNormalizerArgs& args_;
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
struct RowNormalizersKernel {
  static constexpr const char* kName = "planning: normalisers of rows";
  static constexpr int kThreads = product_threads(kNearConsumers);
  static constexpr int kMinBlocks = 1;
  static constexpr int kBlockRegisters = block_registers(kNearConsumers);
  using Added = NearMaps;
  static Added added(const RowNormalizerArgs& args, const AddedBy& by) {
    return near_maps(args, kHeadDim, by);
  }
  static Grid grid(const RowNormalizerArgs& args, const Added& /*added*/) {
    return {
        .blocks = std::int64_t{args.shape.num_lists()} / args.heads_of_block * args.tiles.count(),
        .shared_bytes = sizeof(SharedNear<kHeadDim>)};
  }
  S2O_DEVICE static void run(const RowNormalizerArgs& args, const Added& added) {
    RowNormalizersSm90<Element, kHeadDim>(args, added).run();
  }
};

}  // namespace s2o::device
