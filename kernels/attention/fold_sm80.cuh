// Folded columns on the device (definition: fold_columns.h): after a pass, per tile, the keys below
// fold_end that it did not visit enter as a few columns of mean keys and values. Runs on every
// architecture, as its own launch that resumes from (out, lse).
//
// Visited slots are marked in a bitmap, as many as it holds at a time. 64 columns at a time become
// one step of the portable kernel's tile. Blocks that the tile did not touch, most of them at long
// lengths, have their columns ready and are copied. The others are built (fold_build.cuh): the sum
// of the block minus its visited rows (or the sum of the unvisited ones, whichever reads fewer
// rows), divided by their number. Sums are fp32; means are rounded to the type of q.
#pragma once

#include "kernels/attention/attention_kernels.h"
#include "kernels/attention/fold_build.cuh"
#include "kernels/attention/fold_list.cuh"
#include "kernels/attention/tile_sm80.cuh"

namespace s2o::device {

template <class Traits>
class FoldSm80 {
 public:
  S2O_DEVICE FoldSm80(const AttentionKernelArgs& args, const BlockSumsView& sums)
      : args_(args), sums_(sums), s_(*reinterpret_cast<SharedFold<Traits>*>(shared_memory())) {}

  S2O_DEVICE void run() {
    const std::int32_t plan_tile = load_global(args_.tile_order + block_index());
    const std::int32_t fold_end = load_global(args_.pass.fold_end + plan_tile);
    // Nothing to fold, and the result is where it belongs.
    if (fold_end == 0 && args_.out_fp32 != nullptr && args_.out_fp32 == args_.resume_out) return;
    start_tile(plan_tile, fold_end);
    tile_.start(s_.row_states);
    tile_.resume(args_.lse, s_.row_index);
    if (args_.fold.kind == Compensation::kCentroid) {
      build_centroid();
      if (s_.num_columns > 0) add_columns();
    } else {
      const int fold_block = args_.fold.fold_block;
      const int window = kFoldColumns * (kMaxFoldBlock / fold_block);  // blocks in the bitmap
      for (int first = 0; static_cast<std::int64_t>(first) * fold_block < s_.fold_end;
           first += kFoldColumns) {
        const int in_window = first % window;
        if (in_window == 0) {
          const std::int64_t begin = static_cast<std::int64_t>(first) * fold_block;
          mark_visited<kThreads>(args_, s_.plan_tile, begin, begin + window * fold_block,
                                 s_.visited);
        }
        make_columns({.first_block = first, .first_bit = in_window * fold_block});
        add_columns();
      }
    }
    tile_.store(args_, s_.row_index);
    if (thread_index() == 0) args_.stats[s_.plan_tile].fold_columns = s_.num_columns;
  }

 private:
  using Element = typename Traits::Element;
  static constexpr int kHeadDim = Traits::kHeadDim;
  static constexpr int kThreads = Traits::kThreads;
  using Tile = TileSm80<Traits>;
  using Rows = SlotRowsDevice<Element, kHeadDim>;
  using Sums = typename Rows::Sums;
  static constexpr int kElements = Rows::kElements;

  S2O_DEVICE void start_tile(std::int32_t plan_tile, std::int32_t fold_end) {
    const int tile = plan_tile % args_.num_q_tiles;
    const int plan_head = plan_tile / args_.num_q_tiles;
    if (thread_index() < Traits::kTileM) {
      s_.row_index[thread_index()] =
          tile_row(args_, plan_head, tile, Traits::kTileM, thread_index()).index;
    }
    if (thread_index() == 0) {
      s_.num_columns = 0;
      s_.plan_tile = plan_tile;
      s_.fold_end = fold_end;
      const float scale = args_.scale_log2 / kLog2E;
      s_.spread_factor = scale * scale / (kSquareScale * kSquareScale);
      s_.inverse_scale = 1.0f / scale;
      s_.rows = slot_rows<Element, kHeadDim>(args_, plan_head);
      const std::int64_t set =
          args_.pass.key_order != nullptr ? plan_head : plan_head / args_.plan_heads_per_kv_head;
      s_.first_row_of_set = set * sums_.num_blocks;
    }
    sync_block(kThreads);
    copy_rows_async<Traits::kTileM, kHeadDim, kThreads>(shared_address(s_.q), args_.q, s_.row_index,
                                                        thread_index());
    copy_async_commit();
    copy_async_wait<0>();
    sync_block(kThreads);
  }

  S2O_DEVICE void make_columns(const FoldStep& step) {
    const int thread = thread_index_again();  // the products need the registers
    const FoldList<Traits> list(args_, s_, step);
    list.sort(thread);
    sync_warp();
    copy_columns(step, thread);
    copy_async_commit();
    sync_block(kThreads);  // the rows to add are listed
    build_columns(step, list, thread);
    copy_async_wait<0>();
    sync_block(kThreads);
  }

  // Columns of whole blocks, and zeros where there is no column: NaN times 0 would be NaN. A warp
  // copies those that it sorted.
  S2O_DEVICE void copy_columns(const FoldStep& step, int thread) {
    constexpr int kColumnsOfWarp = kFoldColumns / Traits::kWarps;
    constexpr int kChunks = kHeadDim / kChunkElements;
    const int chunk = lane_of(thread) % kChunks;
    const int first = warp_of(thread) * kColumnsOfWarp + lane_of(thread) / kChunks;
    // One address an array, constant distances from there.
    const std::int64_t source =
        (s_.first_row_of_set + step.first_block + first) * kHeadDim + chunk * kChunkElements;
    const std::uint16_t* const k = sums_.mean_k + source;
    const std::uint16_t* const v = sums_.mean_v + source;
    const std::uint16_t* const variance = sums_.variance + source;
    const bool has_variance = sums_.variance != nullptr;
    const int row = (chunk / 8 * kFoldColumns + first) * kPanelRowBytes;
    const int place = chunk % 8 ^ lane_of(thread) / kChunks;
    static_assert(kColumnsOfWarp % 8 == 0);
#pragma unroll
    for (int i = 0; i < kColumnsOfWarp; i += 32 / kChunks) {
      // swizzled_chunk_offset of (first + i, chunk): i is a multiple of the rows at once.
      const int offset = row + i * kPanelRowBytes + (place ^ i % 8) * kChunkBytes;
      const int remaining = s_.remaining[first + i];
      if (remaining == args_.fold.fold_block) {
        copy_async_16(shared_address(s_.k + offset), k + i * kHeadDim);
        copy_async_16(shared_address(s_.v + offset), v + i * kHeadDim);
        if (has_variance) {
          copy_async_16(shared_address(s_.variance + offset), variance + i * kHeadDim);
        }
      } else if (remaining == 0) {
        const Words<4> zeros{};
        store_words(s_.k + offset, zeros);
        store_words(s_.v + offset, zeros);
        store_words(s_.variance + offset, zeros);
      }
    }
  }

  S2O_DEVICE void build_columns(const FoldStep& step, const FoldList<Traits>& list, int thread) {
    FoldBuilder<Traits> builder(s_, sums_, thread);
    int group = next_group(-1);
    if (group < kFoldGroups) builder.request_first(group, listed_rows(group, 0));
#pragma unroll 1
    while (group < kFoldGroups) {
      builder.start(group, step.first_block + group * kFoldGroup);
      builder.add_rows(listed_rows(group, 0));
#pragma unroll 1
      for (int first = kFoldListRows; first < s_.num_rows[group]; first += kFoldListRows) {
        sync_block(kThreads);
        const int again = thread_index_again();  // `thread` would occupy a register
        if (warp_of(again) == group) list.list_again(again, first);
        sync_block(kThreads);
        builder.request_first(group, listed_rows(group, first));
        builder.add_rows(listed_rows(group, first));
      }
      const int next = next_group(group);
      if (next < kFoldGroups) builder.request_first(next, listed_rows(next, 0));
      builder.finish(group, args_.fold.round_bf16);
      group = next;
    }
  }
  // The next group with rows.
  S2O_DEVICE int next_group(int group) const {
    do {
      ++group;
    } while (group < kFoldGroups && s_.num_rows[group] == 0);
    return group;
  }
  // Of a group, in the list that starts with row `first`.
  S2O_DEVICE int listed_rows(int group, int first) const {
    const int left = s_.num_rows[group] - first;
    return left < kFoldListRows ? left : kFoldListRows;
  }

  // A lane's elements into the swizzled tiles.
  S2O_DEVICE void store_column(int column, int lane, const ColumnPart<kElements>& part) {
    const int element = lane * kElements;
    const int offset = swizzled_chunk_offset(kFoldColumns, column, element / kChunkElements) +
                       element % kChunkElements * 2;
    store_words(s_.k + offset, part.k);
    store_words(s_.v + offset, part.v);
    store_words(s_.variance + offset, part.variance);
  }

  // One column for all unvisited slots: everything below fold_end minus what was visited.
  S2O_DEVICE void build_centroid() {
    const int warp = warp_index();
    if (thread_index() == 0) s_.num_visited = 0;
    sync_block(kThreads);
    Sums total;
    total.clear();
    const std::int64_t whole = min_of_long(s_.fold_end / args_.fold.fold_block, sums_.num_blocks);
    for (std::int64_t block = warp; block < whole; block += Traits::kWarps) {
      Sums sums;
      sums.clear();
      sums.load(sums_, (s_.first_row_of_set + block) * kHeadDim + lane_index() * kElements);
      total.add(sums);
    }
    for (std::int64_t slot = whole * args_.fold.fold_block + warp; slot < s_.fold_end;
         slot += Traits::kWarps) {
      s_.rows.add(total, slot, lane_index(), 1.0f);
    }
    int visited = 0;
    for_executed_items(args_, s_.plan_tile,
                       [&](std::int64_t begin, std::int64_t count, bool is_run) {
                         for (std::int64_t i = warp; i < count; i += Traits::kWarps) {
                           const std::int64_t slot = executed_slot(args_, begin + i, is_run);
                           if (slot >= s_.fold_end) continue;
                           s_.rows.add(total, slot, lane_index(), -1.0f);
                           ++visited;
                         }
                       });
    if (lane_index() == 0 && visited > 0) atomic_add(&s_.num_visited, visited);
    Sums::store_part(s_.partial[warp][0] + lane_index() * kElements, total.k);
    Sums::store_part(s_.partial[warp][1] + lane_index() * kElements, total.v);
    sync_block(kThreads);
    reduce_centroid();
  }

  // The first column; the others are empty.
  S2O_DEVICE void reduce_centroid() {
    const int remaining = s_.fold_end - s_.num_visited;
    for (int column = warp_index(); column < kFoldColumns; column += Traits::kWarps) {
      ColumnPart<kElements> part{};
      if (column == 0 && remaining > 0) {
        Sums total;
        total.clear();
        for (int other = 0; other < Traits::kWarps; ++other) {
#pragma unroll
          for (int e = 0; e < kElements; ++e) {
            total.k[e] += s_.partial[other][0][lane_index() * kElements + e];
            total.v[e] += s_.partial[other][1][lane_index() * kElements + e];
          }
        }
        part = total.template column<Element>(remaining, args_.fold.round_bf16);
      }
      store_column(column, lane_index(), part);
      if (lane_index() > 0) continue;
      s_.bias[column] =
          column == 0 && remaining > 0 ? fold_bias(remaining, s_.inverse_scale) : kNegativeInfinity;
    }
    if (thread_index() == 0) s_.num_columns = remaining > 0 ? 1 : 0;
    sync_block(kThreads);
  }

  // One softmax step over the columns in shared memory.
  S2O_DEVICE void add_columns() {
    constexpr int kRowTiles = Traits::kRowTiles;
    float logits[kRowTiles][Tile::kKeyTiles][4];
#pragma unroll
    for (int t = 0; t < kRowTiles; ++t) {
#pragma unroll
      for (int n = 0; n < Tile::kKeyTiles; ++n) {
#pragma unroll
        for (int e = 0; e < 4; ++e) logits[t][n][e] = 0.0f;
      }
    }
    if (args_.fold.kind == Compensation::kBlocksVariance) {
      tile_.template multiply_keys<true>(shared_address(s_.q), shared_address(s_.variance), logits);
#pragma unroll
      for (int t = 0; t < kRowTiles; ++t) spread(logits[t]);
    }
    tile_.template multiply_keys<false>(shared_address(s_.q), shared_address(s_.k), logits);
    add_bias(logits);
#pragma unroll
    for (int t = 0; t < kRowTiles; ++t) {
      RowPair rows = tile_.rows(t);
      float step_sum[2];
      float correction[2];
      softmax_step(logits[t], args_.scale_log2, rows, step_sum, correction);
      tile_.rows(t) = rows;
      tile_.rescale(t, correction);
    }
    tile_.multiply_values(shared_address(s_.v), logits);
    sync_block(kThreads);  // before the columns are overwritten
  }

  S2O_DEVICE void add_bias(float (&logits)[Traits::kRowTiles][Tile::kKeyTiles][4]) const {
    const float* const bias = s_.bias + Tile::column_of(thread_index_again());
#pragma unroll
    for (int n = 0; n < Tile::kKeyTiles; ++n) {
      const float added[2] = {bias[n * 8], bias[n * 8 + 1]};
#pragma unroll
      for (int t = 0; t < Traits::kRowTiles; ++t) {
#pragma unroll
        for (int e = 0; e < 4; ++e) logits[t][n][e] += added[e % 2];
      }
    }
  }

  // spread_logit(scale^2 sum q^2 var), in units of raw logits.
  S2O_DEVICE void spread(float (&logits)[Tile::kKeyTiles][4]) const {
    const float factor = s_.spread_factor;
    const float inverse_scale = s_.inverse_scale;
#pragma unroll
    for (int n = 0; n < Tile::kKeyTiles; ++n) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        logits[n][e] = spread_logit_fast(logits[n][e] * factor) * inverse_scale;
      }
    }
  }

  // spread_logit without branches: they would cost as much as a product.
  static S2O_DEVICE float spread_logit_fast(float variance) {
    const float wide = sqrt_fast(variance) - 0.5f;
    return variance <= 1.0f ? 0.5f * variance : wide;
  }

  static S2O_DEVICE std::int64_t min_of_long(std::int64_t a, std::int64_t b) {
    return a < b ? a : b;
  }

  const AttentionKernelArgs& args_;
  const BlockSumsView& sums_;
  SharedFold<Traits>& s_;
  Tile tile_;
};

}  // namespace s2o::device
