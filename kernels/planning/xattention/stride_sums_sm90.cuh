// Antidiagonal sums (stride_sums.cuh) by warpgroup products: 128 reduced rows times 256 reduced
// columns a step, each warpgroup 64 rows. As a tensor of whole strides a reduced row is one long
// row, so that a stage is two boxes of the same 64 of its columns.
#pragma once

#include "kernels/planning/launch.cuh"
#include "kernels/planning/shared/product_sm90.cuh"
#include "kernels/planning/xattention/stride_tile.cuh"

namespace s2o::device {

inline constexpr int kStrideConsumers = 2;
inline constexpr int kStrideStagesSm90 = 4;  // 192 KiB

// [heads, reduced rows, stride * head_dim]; boxes of kStrideRows and kStrideColumns rows. The last
// stride of a head may have only its first tokens: [0] without it, [1] with it, for columns of
// tokens that it has.
struct StrideMaps {
  TensorMap q[2];
  TensorMap k[2];
};
inline StrideMaps stride_maps(const XAttentionSumArgs& args, int head_dim, const AddedBy& by) {
  const auto strides_of = [&](const void* x, int num_heads, int added_tokens) {
    const std::int64_t rows = (args.seqlen + added_tokens) / args.stride;
    // NOTE: a map cannot be empty; of an empty one the kernel reads rows beyond its end only.
    return MappedTensor{.base = x,
                        .num_heads = num_heads,
                        .num_rows = rows > 0 ? rows : 1,
                        .num_columns = static_cast<std::int64_t>(args.stride) * head_dim,
                        .head_stride = args.seqlen * head_dim};
  };
  StrideMaps maps;
  for (int i = 0; i < 2; ++i) {
    const int added_tokens = i * (args.stride - 1);
    const int num_kv_heads = args.num_q_heads / args.group_size;
    maps.q[i] = by.tensor_map(strides_of(args.q, args.num_q_heads, added_tokens), kStrideRows);
    maps.k[i] = by.tensor_map(strides_of(args.k, num_kv_heads, added_tokens), kStrideColumns);
  }
  return maps;
}

struct SharedStrideSm90 {
  struct alignas(1024) Stage {
    unsigned char q[kStrideRows * kPanelRowBytes];
    unsigned char k[kStrideColumns * kPanelRowBytes];
  } stage[kStrideStagesSm90];
  ProductRing<kStrideStagesSm90> ring;
};

template <class Element, int kHeadDim, int kColumnsPerBlock>
class StrideSumsSm90 {
 public:
  S2O_DEVICE StrideSumsSm90(const XAttentionSumArgs& args, const StrideMaps& maps)
      : args_(args),
        maps_(maps),
        s_(*reinterpret_cast<SharedStrideSm90*>(shared_memory())),
        tile_(args),
        parts_(args.stride * kPanels) {}

  S2O_DEVICE void run() {
    if (tile_.num_steps == 0) return;
    if (thread_index() == 0) s_.ring.init(kStrideConsumers * 4);
    sync_block(product_threads(kStrideConsumers));
    run_product<kStrideConsumers>([&] { fill(); }, [&](int warpgroup) { consume(warpgroup); });
  }

 private:
  static constexpr int kPanels = kHeadDim / kPanelColumns;
  static constexpr int kGroups = kStrideColumns / kStrideGroup;

  S2O_DEVICE void fill() {
    const auto rest = static_cast<int>(args_.seqlen % args_.stride);
    const int beyond = args_.seqlen < args_.stride ? 1 : 0;  // rows of the empty maps [0]
    int entry = 0;
    for (int step = 0; step < tile_.num_steps; ++step) {
      const int column = tile_.first_column + step * kStrideColumns;
      for (int part = 0; part < parts_; ++part, ++entry) {
        SharedStrideSm90::Stage& stage = s_.stage[entry % kStrideStagesSm90];
        Barrier* const barrier = s_.ring.begin_fill(entry, sizeof(stage));
        const int k_token = part / kPanels;
        const int q_token = args_.stride - 1 - k_token;
        const int panel = part % kPanels * kPanelColumns;
        const int q_last = q_token < rest ? 1 : 0;
        const int k_last = k_token < rest ? 1 : 0;
        load_box_async(shared_address(stage.q), &maps_.q[q_last], barrier,
                       q_token * kHeadDim + panel, tile_.first_row + (q_last != 0 ? 0 : beyond),
                       tile_.head);
        load_box_async(shared_address(stage.k), &maps_.k[k_last], barrier,
                       k_token * kHeadDim + panel, column + (k_last != 0 ? 0 : beyond),
                       tile_.kv_head);
      }
    }
  }

  S2O_DEVICE void consume(int warpgroup) {
    float d[kStrideColumns / 8][4];
    int entry = 0;
    for (int step = 0; step < tile_.num_steps; ++step) {
      pin_registers(d);
      s_.ring.wait(entry);
      multiply(d, warpgroup, entry, false);
      for (int part = 1; part < parts_; ++part) {
        s_.ring.wait(entry + part);
        multiply(d, warpgroup, entry + part, true);
        warpgroup_wait<1>();
        s_.ring.give_back(entry + part - 1);
      }
      entry += parts_;
      warpgroup_wait<0>();
      pin_registers(d);
      s_.ring.give_back(entry - 1);
      const int column = tile_.first_column + step * kStrideColumns;
      const int warp_row = warpgroup * 64 + warp_index() % 4 * 16;
      column + kStrideColumns <= tile_.first_row ? finish<true>(d, warp_row, column)
                                                 : finish<false>(d, warp_row, column);
    }
  }

  S2O_DEVICE void multiply(float (&d)[kStrideColumns / 8][4], int warpgroup, int entry,
                           bool accumulate) const {
    const SharedStrideSm90::Stage& stage = s_.stage[entry % kStrideStagesSm90];
    const std::uint64_t rows = panel_descriptor(
        shared_address(stage.q) + static_cast<std::uint32_t>(warpgroup * 64 * kPanelRowBytes));
    const std::uint64_t columns = panel_descriptor(shared_address(stage.k));
    issue_product<Element, 1>(d, rows, kStrideRows, columns, kStrideColumns, accumulate);
  }

  // kWhole: no column lies beyond the diagonal, and nothing branches.
  template <bool kWhole>
  S2O_DEVICE void finish(const float (&d)[kStrideColumns / 8][4], int warp_row,
                         int step_column) const {
#pragma unroll
    for (int g = 0; g < kGroups; ++g) {
      const int column = step_column + g * kStrideGroup;
      if (!kWhole && column >= tile_.first_row + kStrideRows) break;
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        finish_stride_row<Element, kColumnsPerBlock>(
            args_, tile_, column, warp_row + i * 8 + lane_index() / 4, kWhole,
            [&](int n, int c) { return d[g * kStrideGroupTiles + n][2 * i + c]; });
      }
    }
  }

  const XAttentionSumArgs& args_;
  const StrideMaps& maps_;
  SharedStrideSm90& s_;
  const StrideTile tile_;
  const int parts_;  // of a step: each one panel of one token of the stride
};

template <class Element, int kHeadDim, int kColumnsPerBlock>
struct StrideSumsSm90Kernel {
  static constexpr const char* kName = "planning: antidiagonal sums";
  static constexpr int kThreads = product_threads(kStrideConsumers);
  static constexpr int kMinBlocks = 1;
  static constexpr int kBlockRegisters = block_registers(kStrideConsumers);
  using Added = StrideMaps;
  static Added added(const XAttentionSumArgs& args, const AddedBy& by) {
    return stride_maps(args, kHeadDim, by);
  }
  static Grid grid(const XAttentionSumArgs& args, const Added& /*added*/) {
    return {.blocks = stride_sum_blocks(args), .shared_bytes = sizeof(SharedStrideSm90)};
  }
  S2O_DEVICE static void run(const XAttentionSumArgs& args, const Added& added) {
    StrideSumsSm90<Element, kHeadDim, kColumnsPerBlock>(args, added).run();
  }
};

}  // namespace s2o::device
