// Estimated normalisers (estimate_lse.cuh) by warpgroup products: a block of threads holds
// kMomentBlock queries of one head after another of a KV head's group, each warpgroup 64, and walks
// the moments of their causal blocks of keys, 128 at a time. The warpgroups take turns, so that
// roots and exponentials of one run under the products of the other.
#pragma once

#include "kernels/planning/launch.cuh"
#include "kernels/planning/s2o/lse_rows.cuh"
#include "kernels/planning/shared/product_sm90.cuh"

namespace s2o::device {

inline constexpr int kLseConsumers = 2;
inline constexpr int kLseRowsSm90 = kMomentBlock;
inline constexpr int kLseColumnsSm90 = 128;  // blocks of keys of a step
inline constexpr int kLseStagesSm90 = 2;     // 64 KiB each at head_dim 128
inline constexpr int kLseTurnBarrier = 1;    // named barriers 1, 2: turn of warpgroup 0, 1
inline constexpr int kLseSquareBarrier = 3;  // named barriers 3, 4: squares of warpgroup 0, 1

// Boxes of kLseRowsSm90 queries, of kLseColumnsSm90 blocks of keys.
struct LseMaps {
  TensorMap q;          // [num_q_heads, seqlen, head_dim]
  TensorMap means;      // [num_kv_heads, num_blocks, head_dim]
  TensorMap variances;  // the same shape
};
inline LseMaps lse_maps(const LseArgs& args, int head_dim, const AddedBy& by) {
  const auto moments = [&](const void* x) {
    return by.tensor_map(
        mapped_heads(x, args.num_q_heads / args.group_size, args.num_blocks, head_dim),
        kLseColumnsSm90);
  };
  return {.q = by.tensor_map(mapped_heads(args.q, args.num_q_heads, args.seqlen, head_dim),
                             kLseRowsSm90),
          .means = moments(args.means),
          .variances = moments(args.variances)};
}

template <int kHeadDim>
struct SharedLseSm90 {
  static constexpr int kQueryBuffers = 2;  // the next head's come under the last steps of this one
  alignas(1024) unsigned char q[kQueryBuffers][tile_bytes(kLseRowsSm90, kHeadDim)];
  alignas(1024) unsigned char squares[tile_bytes(kLseRowsSm90, kHeadDim)];
  struct alignas(1024) Stage {
    unsigned char means[tile_bytes(kLseColumnsSm90, kHeadDim)];
    unsigned char variances[tile_bytes(kLseColumnsSm90, kHeadDim)];
  } stage[kLseStagesSm90];
  ProductRing<kQueryBuffers> queries;
  ProductRing<kLseStagesSm90> ring;
};

template <class Element, int kHeadDim>
class EstimateLseSm90 {
 public:
  S2O_DEVICE EstimateLseSm90(const LseArgs& args, const LseMaps& maps)
      : args_(args), maps_(maps), s_(*reinterpret_cast<SharedLseSm90<kHeadDim>*>(shared_memory())) {
    // Long rows first.
    const int num_kv_heads = args.num_q_heads / args.group_size;
    block_ = args.num_blocks - 1 - block_index() / num_kv_heads;
    kv_head_ = block_index() % num_kv_heads;
    steps_ = ceil_div(block_ + 1, kLseColumnsSm90);
  }

  S2O_DEVICE void run() {
    if (thread_index() == 0) {
      s_.queries.init(kLseConsumers * 4);
      s_.ring.init(kLseConsumers * 4);
    }
    sync_block(product_threads(kLseConsumers));
    run_product<kLseConsumers>([&] { fill(); }, [&](int warpgroup) { consume(warpgroup); });
  }

 private:
  static constexpr int kPanels = kHeadDim / kPanelColumns;
  static constexpr int kColumnTiles = kLseColumnsSm90 / 8;
  static constexpr int kChunks = kHeadDim / kChunkElements;
  using Shared = SharedLseSm90<kHeadDim>;

  S2O_DEVICE void fill() {
    fill_queries(0);
    for (int head = 0; head < args_.group_size; ++head) {
      for (int step = 0; step < steps_; ++step) fill_moments(head * steps_ + step, step);
      if (head + 1 < args_.group_size) fill_queries(head + 1);
    }
  }
  S2O_DEVICE void fill_queries(int head) {
    unsigned char* const q = s_.q[head % Shared::kQueryBuffers];
    Barrier* const barrier = s_.queries.begin_fill(head, sizeof(s_.q[0]));
#pragma unroll
    for (int panel = 0; panel < kPanels; ++panel) {
      load_box_async(shared_address(q + panel * kLseRowsSm90 * kPanelRowBytes), &maps_.q, barrier,
                     panel * kPanelColumns, block_ * kLseRowsSm90,
                     kv_head_ * args_.group_size + head);
    }
  }
  S2O_DEVICE void fill_moments(int entry, int step) {
    typename Shared::Stage& stage = s_.stage[entry % kLseStagesSm90];
    Barrier* const barrier = s_.ring.begin_fill(entry, sizeof(stage));
#pragma unroll
    for (int panel = 0; panel < kPanels; ++panel) {
      const int offset = panel * kLseColumnsSm90 * kPanelRowBytes;
      load_box_async(shared_address(stage.means + offset), &maps_.means, barrier,
                     panel * kPanelColumns, step * kLseColumnsSm90, kv_head_);
      load_box_async(shared_address(stage.variances + offset), &maps_.variances, barrier,
                     panel * kPanelColumns, step * kLseColumnsSm90, kv_head_);
    }
  }

  S2O_DEVICE void consume(int warpgroup) {
    float logit[kColumnTiles][4];
    float spread[kColumnTiles][4];
    if (warpgroup == 1) arrive_named(kLseTurnBarrier, kLseConsumers * 128);
    int entry = 0;
    for (int head = 0; head < args_.group_size; ++head) {
      s_.queries.wait(head);
      square_rows(head, warpgroup);
      LseSum sums[2];
      for (int step = 0; step < steps_; ++step, ++entry) {
        s_.ring.wait(entry);
        sync_named(kLseTurnBarrier + warpgroup, kLseConsumers * 128);
        multiply(head, warpgroup, entry, logit, spread);
        arrive_named(kLseTurnBarrier + 1 - warpgroup, kLseConsumers * 128);
        warpgroup_wait<0>();
        pin_registers(logit);
        pin_registers(spread);
        s_.ring.give_back(entry);
        step + 1 < steps_ ? add_columns<false>(step, warpgroup, logit, spread, sums)
                          : add_columns<true>(step, warpgroup, logit, spread, sums);
      }
      s_.queries.give_back(head);
      write(head, warpgroup, sums);
    }
  }

  // Squares of the warpgroup's own rows, for its products.
  S2O_DEVICE void square_rows(int head, int warpgroup) {
    const unsigned char* const q = s_.q[head % Shared::kQueryBuffers];
#pragma unroll 4
    for (int i = thread_index() % 128; i < 64 * kChunks; i += 128) {
      // Where a chunk lies within its row does not matter: it stays in place.
      const int row = warpgroup * 64 + i / 8 % 64;
      const int offset =
          i / 512 * kLseRowsSm90 * kPanelRowBytes + row * kPanelRowBytes + i % 8 * kChunkBytes;
      Words4 words = load_shared_16(shared_address(q + offset));
#pragma unroll
      for (int w = 0; w < 4; ++w) words.word[w] = squared<Element>(words.word[w]);
      store_shared_16(s_.squares + offset, words);
    }
    fence_async_proxy();
    sync_named(kLseSquareBarrier + warpgroup, 128);
  }

  S2O_DEVICE void multiply(int head, int warpgroup, int entry, float (&logit)[kColumnTiles][4],
                           float (&spread)[kColumnTiles][4]) const {
    const typename Shared::Stage& stage = s_.stage[entry % kLseStagesSm90];
    const auto rows = static_cast<std::uint32_t>(warpgroup * 64 * kPanelRowBytes);
    pin_registers(logit);
    pin_registers(spread);
    issue_product<Element, kPanels>(
        logit, shared_address(s_.q[head % Shared::kQueryBuffers]) + rows, kLseRowsSm90,
        shared_address(stage.means), kLseColumnsSm90, false);
    issue_product<Element, kPanels>(spread, shared_address(s_.squares) + rows, kLseRowsSm90,
                                    shared_address(stage.variances), kLseColumnsSm90, false);
  }

  S2O_DEVICE static int row_of(int warpgroup, int i) {
    return warpgroup * 64 + warp_index() % 4 * 16 + lane_index() / 4 + i * 8;
  }

  template <bool kLast>
  S2O_DEVICE void add_columns(int step, int warpgroup, const float (&logit)[kColumnTiles][4],
                              const float (&spread)[kColumnTiles][4], LseSum (&sums)[2]) const {
    const LseLogit<Element> logit_of(args_);
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const float own_share = kLast ? lse_own_share(row_of(warpgroup, i)) : 0.0f;
      float x[2 * kColumnTiles];
#pragma unroll
      for (int j = 0; j < 2 * kColumnTiles; ++j) {
        x[j] = logit_of(logit[j / 2][2 * i + j % 2], spread[j / 2][2 * i + j % 2]);
        if constexpr (kLast) {
          const int column = step * kLseColumnsSm90 + j / 2 * 8 + lane_index() % 4 * 2 + j % 2;
          x[j] += column == block_ ? own_share : 0.0f;
          if (column > block_) x[j] = kNoWeight;
        }
      }
      sums[i].add(x);
    }
  }

  S2O_DEVICE void write(int head, int warpgroup, const LseSum (&sums)[2]) const {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const float lse = sums[i].finish();
      const std::int64_t token =
          static_cast<std::int64_t>(block_) * kLseRowsSm90 + row_of(warpgroup, i);
      if (lane_index() % 4 != 0 || token >= args_.seqlen) continue;
      args_.lse[(kv_head_ * args_.group_size + head) * args_.seqlen + token] = lse;
    }
  }

  const LseArgs& args_;
  const LseMaps& maps_;
  Shared& s_;
  int block_;
  int kv_head_;
  int steps_;
};

template <class Element, int kHeadDim>
struct EstimateLseSm90Kernel {
  static constexpr const char* kName = "planning: normalisers";
  static constexpr int kThreads = product_threads(kLseConsumers);
  static constexpr int kMinBlocks = 1;
  static constexpr int kBlockRegisters = block_registers(kLseConsumers);
  using Added = LseMaps;
  static Added added(const LseArgs& args, const AddedBy& by) {
    return lse_maps(args, kHeadDim, by);
  }
  static Grid grid(const LseArgs& args, const Added& /*added*/) {
    return {.blocks = std::int64_t{args.num_q_heads / args.group_size} * args.num_blocks,
            .shared_bytes = sizeof(SharedLseSm90<kHeadDim>)};
  }
  S2O_DEVICE static void run(const LseArgs& args, const Added& added) {
    EstimateLseSm90<Element, kHeadDim>(args, added).run();
  }
};

}  // namespace s2o::device
