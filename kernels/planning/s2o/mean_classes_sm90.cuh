// Classes of keys by mean queries (mean_classes.cuh) by warpgroup products: each of four
// warpgroups has the means of 64 rows, 128 keys are the columns of a product, and the classes of
// one are made under the products of the others.
#pragma once

#include "kernels/planning/launch.cuh"
#include "kernels/planning/s2o/mean_class.cuh"
#include "kernels/planning/shared/product_sm90.cuh"

namespace s2o::device {

inline constexpr int kMeanConsumers = 4;
inline constexpr int kMeanRows = 64 * kMeanConsumers;  // of a block, one KV head
inline constexpr int kMeanKeys = 128;                  // of a ring entry
inline constexpr int kMeanStages = 4;

struct MeanClassGrid {
  TensorMap means;  // [num_kv_heads, rows, head_dim], boxes of kMeanRows rows
  TensorMap k;      // [num_kv_heads, seqlen, head_dim], boxes of kMeanKeys rows
  std::int32_t num_row_tiles = 0;
  std::int32_t num_key_chunks = 0;
  std::int32_t chunk_keys = 0;  // a multiple of kMeanKeys
};

// The longest chunks that leave two blocks for each multiprocessor: more would wait longer for
// their means than they save at the end.
inline MeanClassGrid mean_class_grid(const MeanClassArgs& args, int head_dim, const AddedBy& by) {
  const HistoryShape& shape = args.shape;
  const int tiles = args.batch.num_row_tiles(shape, kMeanRows);
  const std::int64_t blocks = std::int64_t{args.batch.num_kv_heads} * tiles;
  int chunk = 16384;
  while (chunk > 512 &&
         blocks * args.batch.num_key_chunks(shape, chunk) < 2 * by.num_multiprocessors()) {
    chunk /= 2;
  }
  const auto rows = static_cast<std::int64_t>(shape.num_segments) * shape.lists_per_kv_head;
  return {.means = by.tensor_map(mapped_heads(args.means, shape.num_kv_heads, rows, head_dim),
                                 kMeanRows),
          .k = by.tensor_map(mapped_heads(args.k, shape.num_kv_heads, shape.seqlen, head_dim),
                             kMeanKeys),
          .num_row_tiles = tiles,
          .num_key_chunks = args.batch.num_key_chunks(shape, chunk),
          .chunk_keys = chunk};
}

template <int kHeadDim>
struct SharedMeanClasses {
  alignas(1024) unsigned char means[tile_bytes(kMeanRows, kHeadDim)];
  alignas(1024) unsigned char k[kMeanStages][tile_bytes(kMeanKeys, kHeadDim)];
  Barrier means_full;
  ProductRing<kMeanStages> ring;
};

template <class Element, int kHeadDim>
class MeanClassesSm90 {
 public:
  S2O_DEVICE MeanClassesSm90(const MeanClassArgs& args, const MeanClassGrid& grid)
      : args_(args),
        grid_(grid),
        s_(*reinterpret_cast<SharedMeanClasses<kHeadDim>*>(shared_memory())) {
    // Blocks in flight share a chunk of keys; long histories first.
    const int tile = grid.num_row_tiles - 1 - block_index() % grid.num_row_tiles;
    const int chunk = block_index() / grid.num_row_tiles % grid.num_key_chunks;
    const RowBatch& batch = args.batch;
    kv_head_ = batch.first_kv_head + block_index() / grid.num_row_tiles / grid.num_key_chunks;
    first_row_ = batch.first_segment * args.shape.lists_per_kv_head + tile * kMeanRows;
    end_row_ = min_of(first_row_ + kMeanRows, batch.end_segment * args.shape.lists_per_kv_head);
    first_key_ = chunk * grid.chunk_keys;
    num_tiles_ = tiles_of(end_row_ - 1);
  }

  S2O_DEVICE void run() {
    if (num_tiles_ == 0) return;
    if (thread_index() == 0) {
      barrier_init(&s_.means_full, 1);
      s_.ring.init(kMeanConsumers * 4);
    }
    sync_block(product_threads(kMeanConsumers));
    run_product<kMeanConsumers>([&] { fill(); }, [&](int warpgroup) { consume(warpgroup); });
  }

 private:
  static constexpr int kPanels = kHeadDim / kPanelColumns;

  // Ring entries that hold ranked keys of the row.
  S2O_DEVICE int tiles_of(int row) const {
    const std::int64_t length = args_.shape.history_length(row / args_.shape.lists_per_kv_head);
    const std::int64_t keys = length - first_key_;
    if (keys <= 0) return 0;
    return ceil_div(static_cast<int>(keys < grid_.chunk_keys ? keys : grid_.chunk_keys), kMeanKeys);
  }

  S2O_DEVICE void fill() {
    barrier_arrive_expect(&s_.means_full, sizeof(s_.means));
#pragma unroll
    for (int panel = 0; panel < kPanels; ++panel) {
      load_box_async(
          shared_address(s_.means) + static_cast<std::uint32_t>(panel * kMeanRows * kPanelRowBytes),
          &grid_.means, &s_.means_full, panel * kPanelColumns, first_row_, kv_head_);
    }
    for (int tile = 0; tile < num_tiles_; ++tile) {
      const std::uint32_t target = shared_address(s_.k[tile % kMeanStages]);
      Barrier* const barrier = s_.ring.begin_fill(tile, sizeof(s_.k[0]));
#pragma unroll
      for (int panel = 0; panel < kPanels; ++panel) {
        load_box_async(target + static_cast<std::uint32_t>(panel * kMeanKeys * kPanelRowBytes),
                       &grid_.k, barrier, panel * kPanelColumns, first_key_ + tile * kMeanKeys,
                       kv_head_);
      }
    }
  }

  S2O_DEVICE void consume(int warpgroup) {
    const int own = first_row_ + warpgroup * 64;
    const int own_tiles = own < end_row_ ? tiles_of(min_of(own + 64, end_row_) - 1) : 0;
    const int first = own + warp_index() % 4 * 16 + lane_index() / 4;
    ClassedRow rows[2];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int row = first + 8 * i;
      rows[i] = classed_row(args_, kv_head_, min_of(row, end_row_ - 1));
      if (row >= end_row_) rows[i].end = 0;
    }
    const std::uint32_t means =
        shared_address(s_.means) + static_cast<std::uint32_t>(warpgroup * 64 * kPanelRowBytes);
    float d[kMeanKeys / 8][4];
    barrier_wait(&s_.means_full, 0);
    for (int tile = 0; tile < num_tiles_; ++tile) {
      s_.ring.wait(tile);
      if (tile < own_tiles) {
        pin_registers(d);
        issue_product<Element, kPanels>(d, panel_descriptor(means), kMeanRows,
                                        panel_descriptor(shared_address(s_.k[tile % kMeanStages])),
                                        kMeanKeys, false);
        warpgroup_wait<0>();
        pin_registers(d);
      }
      s_.ring.give_back(tile);
      if (tile >= own_tiles) continue;
#pragma unroll
      for (int block = 0; block < kMeanKeys / kStoredBlock; ++block) {
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          store_classes<8>(rows[i], first_key_ + tile * kMeanKeys + block * kStoredBlock,
                           [&](int j, int e) { return d[block * 8 + j][2 * i + e]; });
        }
      }
    }
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      if (!rows[i].is_finite() && lane_index() % 4 == 0) report_row(args_, kv_head_, first + 8 * i);
    }
  }

  const MeanClassArgs& args_;
  const MeanClassGrid& grid_;
  SharedMeanClasses<kHeadDim>& s_;
  int kv_head_;
  int first_row_;  // of the KV head
  int end_row_;
  int first_key_;
  int num_tiles_;  // of keys
};

template <class Element, int kHeadDim>
struct MeanClassesSm90Kernel {
  static constexpr const char* kName = "planning: classes of keys";
  static constexpr int kThreads = product_threads(kMeanConsumers);
  static constexpr int kMinBlocks = 1;
  static constexpr int kBlockRegisters = block_registers(kMeanConsumers);
  using Added = MeanClassGrid;
  static Added added(const MeanClassArgs& args, const AddedBy& by) {
    return mean_class_grid(args, kHeadDim, by);
  }
  static Grid grid(const MeanClassArgs& args, const Added& added) {
    return {.blocks =
                std::int64_t{args.batch.num_kv_heads} * added.num_row_tiles * added.num_key_chunks,
            .shared_bytes = sizeof(SharedMeanClasses<kHeadDim>)};
  }
  S2O_DEVICE static void run(const MeanClassArgs& args, const Added& added) {
    MeanClassesSm90<Element, kHeadDim>(args, added).run();
  }
};

}  // namespace s2o::device
