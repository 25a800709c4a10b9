// Estimated normalisers (RowNormalizerArgs) by warpgroup products, as estimate_lse_sm90: a
// block of threads holds a tile of queries of one head after another of a KV head's group, each
// warpgroup 64 of them, and walks blocks of 128 keys: the tile's own, those of the window before
// it, the sink, then samples. The warpgroups take turns, so that exponentials of one run under the
// product of the other.
#pragma once

#include "kernels/planning/launch.cuh"
#include "kernels/planning/s2o/lse_rows.cuh"
#include "kernels/planning/s2o/row_ops.h"
#include "kernels/planning/shared/product_sm90.cuh"

namespace s2o::device {

inline constexpr int kNearConsumers = 2;
inline constexpr int kNearRows = kRankedRows;
inline constexpr int kNearKeys = 128;  // of a step
inline constexpr int kNearStages = 4;
inline constexpr int kNearTurnBarrier = 1;  // named barriers 1, 2: turn of warpgroup 0, 1

// Boxes of kNearRows rows.
struct NearMaps {
  TensorMap q;        // [num_q_heads, seqlen, head_dim]
  TensorMap k;        // [num_kv_heads, seqlen, head_dim]
  TensorMap samples;  // [num_kv_heads, num_samples, head_dim]
};
inline NearMaps near_maps(const RowNormalizerArgs& args, int head_dim, const AddedBy& by) {
  const HistoryShape& shape = args.shape;
  const auto map = [&](const void* x, int heads, std::int64_t rows) {
    return by.tensor_map(mapped_heads(x, heads, rows, head_dim), kNearRows);
  };
  // Where there are no samples, a map that nobody uses.
  const bool has_samples = args.num_samples > 0;
  return {.q = map(args.q, shape.num_lists(), shape.seqlen),
          .k = map(args.k, shape.num_kv_heads, shape.seqlen),
          .samples = map(has_samples ? args.samples : args.k, shape.num_kv_heads,
                         has_samples ? args.num_samples : shape.seqlen)};
}

template <int kHeadDim>
struct SharedNear {
  static constexpr int kQueryBuffers = 2;
  alignas(1024) unsigned char q[kQueryBuffers][tile_bytes(kNearRows, kHeadDim)];
  alignas(1024) unsigned char k[kNearStages][tile_bytes(kNearKeys, kHeadDim)];
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
    segment_ = args.tiles.at(args.tiles.count() - 1 - block_index() / shape.num_kv_heads);
    kv_head_ = block_index() % shape.num_kv_heads;
    history_ = static_cast<int>(shape.history_length(segment_));
    window_steps_ = ceil_div(segment_ * kNearRows - history_, kNearKeys);
    sink_steps_ = ceil_div(min_of(args.sink, history_), kNearKeys);
    const auto stride = static_cast<int>(args.sample_stride);
    first_sample_ = ceil_div(args.sink, stride);
    end_sample_ = history_ / stride;
    if (end_sample_ > args.num_samples) end_sample_ = static_cast<int>(args.num_samples);
    const int samples = end_sample_ - first_sample_;
    near_steps_ = 1 + window_steps_ + sink_steps_;
    steps_ = near_steps_ + (samples > 0 ? ceil_div(samples, kNearKeys) : 0);
    sample_weight_ =
        samples > 0
            ? log2_fast(static_cast<float>(history_ - args.sink) / static_cast<float>(samples))
            : 0.0f;
  }

  S2O_DEVICE void run() {
    if (thread_index() == 0) {
      s_.queries.init(kNearConsumers * 4);
      s_.ring.init(kNearConsumers * 4);
    }
    sync_block(product_threads(kNearConsumers));
    run_product<kNearConsumers>([&] { fill(); }, [&](int warpgroup) { consume(warpgroup); });
  }

 private:
  static constexpr int kPanels = kHeadDim / kPanelColumns;
  static constexpr int kColumnTiles = kNearKeys / 8;
  using Shared = SharedNear<kHeadDim>;

  S2O_DEVICE int group() const { return args_.shape.lists_per_kv_head; }

  // Heads of the group that are not local here are shown to the consumers one after the other.
  S2O_DEVICE int head_from(int head) const {
    while (head < group() && is_local(head)) ++head;
    return head;
  }
  S2O_DEVICE bool is_local(int head) const {
    return args_.is_local != nullptr &&
           load_global(args_.is_local +
                       std::int64_t{kv_head_ * group() + head} * args_.shape.num_segments +
                       segment_) != 0;
  }

  S2O_DEVICE void fill() {
    int entry = 0;
    int head = head_from(0);
    if (head < group()) fill_queries(0, head);
    for (int shown = 0; head < group(); ++shown) {
      const int next = head_from(head + 1);
      for (int step = 0; step < steps_; ++step, ++entry) fill_keys(entry, step);
      if (next < group()) fill_queries(shown + 1, next);
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
    if (step == 0) return segment_ * kNearRows;
    if (step <= window_steps_) return history_ + (step - 1) * kNearKeys;
    if (step < near_steps_) return (step - 1 - window_steps_) * kNearKeys;
    return (step - near_steps_) * kNearKeys;
  }
  // Columns [first, end) of a step count, of the own segment up to the row.
  struct Columns {
    int first, end;
  };
  S2O_DEVICE Columns columns_of(int step) const {
    const int begin = first_row(step);
    if (step == 0) return {0, kNearKeys};
    if (step <= window_steps_) return {0, min_of(kNearKeys, segment_ * kNearRows - begin)};
    if (step < near_steps_) return {0, min_of(args_.sink, history_) - begin};
    return {first_sample_ - begin, end_sample_ - begin};
  }

  S2O_DEVICE void consume(int warpgroup) {
    float logit[kColumnTiles][4];
    if (warpgroup == 1) arrive_named(kNearTurnBarrier, kNearConsumers * 128);
    int entry = 0;
    int shown = 0;
    for (int head = head_from(0); head < group(); head = head_from(head + 1), ++shown) {
      s_.queries.wait(shown);
      LseSum sums[2];
      for (int step = 0; step < steps_; ++step, ++entry) {
        s_.ring.wait(entry);
        sync_named(kNearTurnBarrier + warpgroup, kNearConsumers * 128);
        pin_registers(logit);
        issue_product<Element, kPanels>(
            logit,
            shared_address(s_.q[shown % Shared::kQueryBuffers]) +
                static_cast<std::uint32_t>(warpgroup * 64 * kPanelRowBytes),
            kNearRows, shared_address(s_.k[entry % kNearStages]), kNearKeys, false);
        arrive_named(kNearTurnBarrier + 1 - warpgroup, kNearConsumers * 128);
        warpgroup_wait<0>();
        pin_registers(logit);
        s_.ring.give_back(entry);
        add_columns(step, warpgroup, logit, sums);
      }
      s_.queries.give_back(shown);
      write(head, warpgroup, sums);
    }
  }

  S2O_DEVICE static int row_of(int warpgroup, int i) {
    return warpgroup * 64 + warp_index() % 4 * 16 + lane_index() / 4 + i * 8;
  }

  S2O_DEVICE void add_columns(int step, int warpgroup, const float (&logit)[kColumnTiles][4],
                              LseSum (&sums)[2]) const {
    const float scale = args_.softmax_scale * kLog2E;
    const float bias = step >= near_steps_ ? sample_weight_ : 0.0f;
    const Columns columns = columns_of(step);
    const bool whole = step != 0 && columns.first <= 0 && columns.end >= kNearKeys;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int end = step == 0 ? row_of(warpgroup, i) + 1 : columns.end;
      float x[2 * kColumnTiles];
#pragma unroll
      for (int j = 0; j < 2 * kColumnTiles; ++j) {
        x[j] = fused(logit[j / 2][2 * i + j % 2], scale, bias);
      }
      if (!whole) {
#pragma unroll
        for (int j = 0; j < 2 * kColumnTiles; ++j) {
          const int column = j / 2 * 8 + lane_index() % 4 * 2 + j % 2;
          if (column < columns.first || column >= end) x[j] = kNoWeight;
        }
      }
      sums[i].add(x);
    }
  }

  // log2 over the quad that holds the row.
  S2O_DEVICE static float log2_sum(const LseSum& sum) {
    const float all = quad_max(sum.largest);
    return all + log2_fast(quad_sum(sum.sum * exp2_fast(sum.largest - all)));
  }
  S2O_DEVICE void write(int head, int warpgroup, const LseSum (&sums)[2]) const {
    const std::int64_t q_head = kv_head_ * group() + head;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const float normalizer = log2_sum(sums[i]);
      const std::int64_t token =
          static_cast<std::int64_t>(segment_) * kNearRows + row_of(warpgroup, i);
      if (lane_index() % 4 != 0 || token >= args_.shape.seqlen) continue;
      args_.log2_normalizers[q_head * args_.shape.seqlen + token] = normalizer;
    }
  }

  const RowNormalizerArgs& args_;
  const NearMaps& maps_;
  Shared& s_;
  int segment_;
  int kv_head_;
  int history_;
  int window_steps_, sink_steps_, near_steps_, steps_;
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
    return {.blocks = std::int64_t{args.shape.num_kv_heads} * args.tiles.count(),
            .shared_bytes = sizeof(SharedNear<kHeadDim>)};
  }
  S2O_DEVICE static void run(const RowNormalizerArgs& args, const Added& added) {
    RowNormalizersSm90<Element, kHeadDim>(args, added).run();
  }
};

}  // namespace s2o::device
