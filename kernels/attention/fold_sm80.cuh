// Folded columns on the device (definition: fold_columns.h): after a pass, per tile, the keys below
// fold_end that it did not visit enter as a few columns of mean keys and values. Runs on every
// architecture, as its own launch that resumes from (out, lse).
//
// Visited slots are marked in a bitmap, as many as it holds at a time. Per column: the sum of the
// block minus its visited rows (or the sum of the unvisited ones, whichever reads fewer rows),
// divided by their number; per 64 columns one step of the portable kernel's tile. Sums are fp32;
// means are rounded to the type of q.
#pragma once

#include "kernels/attention/attention_launch.h"
#include "kernels/attention/fold_sums.cuh"
#include "kernels/attention/tile_sm80.cuh"

namespace s2o::device {

inline constexpr int kFoldColumns = 64;  // columns of one step
inline constexpr int kBitmapSlots = kFoldColumns * kMaxFoldBlock;

// Blocks of the kernel on a multiprocessor, and rows that a lane loads at once. Two blocks of 256
// threads fit the shared memory of sm_90, if their registers do: one alone leaves its latencies
// open (issue slots 36 % busy on an H200). The 164 KiB of sm_80 hold one.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
S2O_HOST_DEVICE constexpr int fold_blocks(int threads) { return threads == 256 ? 2 : 3; }
inline constexpr int kFoldRowsAtOnce = 2;
#else
S2O_HOST_DEVICE constexpr int fold_blocks(int /*threads*/) { return 1; }
inline constexpr int kFoldRowsAtOnce = 4;
#endif

// As TraitsSm80, but always 16 rows a warp: building columns needs the registers.
template <class ElementType, int kHeadDimValue, int kTileMValue>
struct TraitsFold {
  using Element = ElementType;
  static constexpr int kHeadDim = kHeadDimValue;
  static constexpr int kTileM = kTileMValue;
  static constexpr int kTileN = kFoldColumns;
  static constexpr int kPvTerms = 1;
  static constexpr int kWarps = kTileM / 16;
  static constexpr int kThreads = 32 * kWarps;
  static constexpr int kRowsPerWarp = 16;
  static constexpr int kRowTiles = 1;
};

template <class Traits>
struct SharedFold {
  alignas(128) unsigned char q[tile_bytes(Traits::kTileM, Traits::kHeadDim)];
  alignas(128) unsigned char k[tile_bytes(kFoldColumns, Traits::kHeadDim)];
  alignas(128) unsigned char v[tile_bytes(kFoldColumns, Traits::kHeadDim)];
  alignas(128) unsigned char variance[tile_bytes(kFoldColumns, Traits::kHeadDim)];
  RowPair row_states[Traits::kThreads];
  std::int32_t row_index[Traits::kTileM];
  float bias[kFoldColumns];  // raw logit that is added: log2(n) / scale_log2, -inf for no column
  std::uint32_t visited[kBitmapSlots / 32 + 1];  // the last word is read, not used
  union {
    // Rows of the column that a warp builds.
    std::uint16_t column_rows[Traits::kWarps][kMaxFoldBlock];
    // kCentroid: sums of K and V by groups of threads.
    float partial[Traits::kThreads / (Traits::kHeadDim / kChunkElements)][2][Traits::kHeadDim];
  };
  std::int32_t num_columns;
  std::int32_t num_visited;
};

template <class Traits>
class FoldSm80 {
 public:
  S2O_DEVICE FoldSm80(const AttentionKernelArgs& args, const BlockSumsView& sums)
      : args_(args),
        sums_(sums),
        s_(*reinterpret_cast<SharedFold<Traits>*>(shared_memory())),
        plan_tile_(load_global(args.tile_order + block_index())),
        plan_head_(plan_tile_ / args.num_q_tiles),
        fold_end_(load_global(args.pass.fold_end + plan_tile_)),
        rows_(slot_rows<Element, kHeadDim>(args, plan_head_)) {}

  S2O_DEVICE void run() {
    // Nothing to fold, and the result is where it belongs.
    if (fold_end_ == 0 && args_.out_fp32 != nullptr && args_.out_fp32 == args_.resume_out) return;
    load_queries();
    tile_.start(s_.row_states);
    tile_.resume(args_.lse, s_.row_index);
    if (args_.fold.kind == Compensation::kCentroid) {
      build_centroid();
      if (s_.num_columns > 0) add_columns();
    } else {
      const int step_slots = kFoldColumns * args_.fold.fold_block;
      const int marked_slots = kBitmapSlots / step_slots * step_slots;
      for (std::int64_t marked = 0; marked < fold_end_; marked += marked_slots) {
        mark_visited(marked, marked + marked_slots);
        for (int bit = 0; bit < marked_slots && marked + bit < fold_end_; bit += step_slots) {
          build_columns(marked, bit);
          add_columns();
        }
      }
    }
    tile_.store(args_, s_.row_index);
    if (thread_index() == 0) args_.stats[plan_tile_].fold_columns = s_.num_columns;
  }

 private:
  using Element = typename Traits::Element;
  static constexpr int kHeadDim = Traits::kHeadDim;
  static constexpr int kThreads = Traits::kThreads;
  using Tile = TileSm80<Traits>;
  using Rows = SlotRowsDevice<Element, kHeadDim>;
  static constexpr int kGroups = kThreads / Rows::kChunks;  // rows that the block reads at once

  S2O_DEVICE void load_queries() {
    const int tile = plan_tile_ % args_.num_q_tiles;
    if (thread_index() < Traits::kTileM) {
      s_.row_index[thread_index()] =
          tile_row(args_, plan_head_, tile, Traits::kTileM, thread_index()).index;
    }
    if (thread_index() == 0) s_.num_columns = 0;
    sync_block(kThreads);
    copy_rows_async<Traits::kTileM, kHeadDim, kThreads>(shared_address(s_.q), args_.q, s_.row_index,
                                                        thread_index());
    copy_async_commit();
    copy_async_wait<0>();
    sync_block(kThreads);
  }

  // Calls visit(begin, count, is_run) for the executed part of every item: slots [begin, + count)
  // of a run, entries of gather_indices of a gather.
  template <class Visit>
  S2O_DEVICE void for_executed_items(const Visit& visit) const {
    std::int64_t stop_steps = args_.stats[plan_tile_].stop_steps;
    const std::int64_t end = tile_items_end(args_.pass, plan_tile_);
    for (std::int64_t i = load_global(args_.pass.item_offsets + plan_tile_); i < end; ++i) {
      const ItemWords item = load_item(args_.pass.items + i);
      std::int64_t count = item.count;
      if (item.stoppable()) {
        const std::int64_t steps = ceil_div(item.count, args_.block_n);
        const std::int64_t done = steps < stop_steps ? steps : stop_steps;
        stop_steps -= done;
        if (done < steps) count = done * args_.block_n;
      }
      visit(item.begin, count, item.kind() == ItemKind::kRun);
    }
  }

  S2O_DEVICE std::int64_t slot_of(std::int64_t entry, bool is_run) const {
    return is_run ? entry : load_global(args_.pass.gather_indices + entry);
  }

  // Bits of the slots in [first, end) that the tile visited.
  S2O_DEVICE void mark_visited(std::int64_t first, std::int64_t end) {
    sync_block(kThreads);  // the columns before are done with the bitmap
    for (int word = thread_index(); word < kBitmapSlots / 32; word += kThreads)
      s_.visited[word] = 0;
    sync_block(kThreads);
    for_executed_items([&](std::int64_t begin, std::int64_t count, bool is_run) {
      std::int64_t from = begin;
      std::int64_t to = begin + count;
      if (is_run) {  // only the part inside the window
        from = from < first ? first : from;
        to = to > end ? end : to;
      }
      for (std::int64_t entry = from + thread_index(); entry < to; entry += kThreads) {
        const std::int64_t slot = slot_of(entry, is_run) - first;
        if (slot >= 0 && slot < end - first) {
          atomic_or(&s_.visited[slot / 32], 1u << (slot % 32));
        }
      }
    });
    sync_block(kThreads);
  }

  // 32 bits of the bitmap from `bit` on.
  S2O_DEVICE std::uint32_t visited_bits(int bit) const {
    const std::uint64_t words =
        static_cast<std::uint64_t>(s_.visited[bit / 32 + 1]) << 32 | s_.visited[bit / 32];
    return static_cast<std::uint32_t>(words >> bit % 32);
  }

  // Each warp builds every kWarps-th column. `first_bit` of the bitmap is the first column's.
  S2O_DEVICE void build_columns(std::int64_t marked, int first_bit) {
    for (int column = warp_index(); column < kFoldColumns; column += Traits::kWarps) {
      build_column(marked, first_bit + column * args_.fold.fold_block, column);
    }
    sync_block(kThreads);
  }

  S2O_DEVICE void build_column(std::int64_t marked, int first_bit, int column) {
    const int fold_block = args_.fold.fold_block;
    const std::int64_t begin = marked + first_bit;
    const std::int64_t left = fold_end_ - begin;
    const int size = left < 0 ? 0 : (left < fold_block ? static_cast<int>(left) : fold_block);
    int visited = 0;
    for (int i = 0; i < size; i += 32) {
      visited += count_bits(visited_bits(first_bit + i) & low_bits(size - i));
    }
    const int remaining = size - visited;

    // Whole blocks have a ready sum, and removing few rows is cheaper than adding many.
    const std::int64_t block = begin / fold_block;
    const bool subtract = size == fold_block && block < sums_.num_blocks && visited < remaining;
    const int chunk = lane_index() % Rows::kChunks;
    ChunkSums total;
    total.clear();
    if (subtract && lane_index() < Rows::kChunks) add_block_sums(total, block, chunk);
    if (remaining > 0) {
      const int count = list_rows(first_bit, size, subtract);
      add_rows(total, begin, count, chunk, subtract ? -1.0f : 1.0f);
    }
    for (int mask = Rows::kChunks; mask < 32; mask *= 2) total.add_lanes(mask);
    if (lane_index() < Rows::kChunks) store_chunk(column, chunk, total, remaining);
    if (lane_index() == 0) {
      s_.bias[column] = remaining > 0 ? log2f_of(remaining) / args_.scale_log2 : kNegativeInfinity;
      if (remaining > 0) atomic_add(&s_.num_columns, 1);
    }
  }

  static S2O_DEVICE std::uint32_t low_bits(int count) {
    return count >= 32 ? 0xffffffffu : (1u << count) - 1u;
  }

  // Lists the rows of the column that were visited, or those that were not; their number.
  S2O_DEVICE int list_rows(int first_bit, int size, bool visited) {
    std::uint16_t* const list = s_.column_rows[warp_index()];
    sync_warp();  // the column before has been read
    int count = 0;
    for (int i = 0; i < size; i += 32) {
      const std::uint32_t marked = visited_bits(first_bit + i);
      const std::uint32_t rows = (visited ? marked : ~marked) & low_bits(size - i);
      const int lane = lane_index();
      if ((rows >> lane & 1u) != 0) {
        list[count + count_bits(rows & low_bits(lane))] = static_cast<std::uint16_t>(i + lane);
      }
      count += count_bits(rows);
    }
    sync_warp();
    return count;
  }

  // Adds the listed rows, several loads in flight.
  S2O_DEVICE void add_rows(ChunkSums& total, std::int64_t begin, int count, int chunk, float sign) {
    constexpr int kAtOnce = kFoldRowsAtOnce;
    const std::uint16_t* const list = s_.column_rows[warp_index()];
    const int group = lane_index() / Rows::kChunks;
#pragma unroll 1
    for (int first = group; first - group < count; first += kAtOnce * Rows::kGroups) {
      Words4 k[kAtOnce];
      Words4 v[kAtOnce];
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) {
        const int row = first + i * Rows::kGroups;
        k[i] = v[i] = {{0, 0, 0, 0}};  // adds nothing
        if (row < count) rows_.load(begin + list[row], chunk, k[i], v[i]);
      }
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) total.template add<Element>(k[i], v[i], sign);
    }
  }

  S2O_DEVICE void add_block_sums(ChunkSums& total, std::int64_t block, int chunk) const {
    const std::int64_t set =
        args_.pass.key_order != nullptr ? plan_head_ : plan_head_ / args_.plan_heads_per_kv_head;
    const std::int64_t first = (set * sums_.num_blocks + block) * kHeadDim + chunk * kChunkElements;
#pragma unroll
    for (int e = 0; e < kChunkElements; ++e) {
      total.k[e] += load_global(sums_.k + first + e);
      total.v[e] += load_global(sums_.v + first + e);
      if (sums_.k_squared != nullptr)
        total.k_squared[e] += load_global(sums_.k_squared + first + e);
    }
  }

  // Means of 8 elements into the swizzled tiles; zeros where nothing remains.
  S2O_DEVICE void store_chunk(int column, int chunk, const ChunkSums& total, int remaining) {
    const float inverse = remaining > 0 ? 1.0f / static_cast<float>(remaining) : 0.0f;
    const int offset = swizzled_chunk_offset(kFoldColumns, column, chunk);
    auto* const k = reinterpret_cast<std::uint32_t*>(s_.k + offset);
    auto* const v = reinterpret_cast<std::uint32_t*>(s_.v + offset);
    auto* const variance = reinterpret_cast<std::uint32_t*>(s_.variance + offset);
#pragma unroll
    for (int pair = 0; pair < kChunkElements / 2; ++pair) {
      float mean_k[2];
      float mean_v[2];
      float var[2];
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        const int element = 2 * pair + e;
        mean_k[e] = total.k[element] * inverse;
        mean_v[e] = total.v[element] * inverse;
        var[e] = max_of(fused(-mean_k[e], mean_k[e], total.k_squared[element] * inverse), 0.0f);
      }
      if (args_.fold.round_bf16) {
        round_to_bf16(mean_k);
        round_to_bf16(mean_v);
      }
      k[pair] = pack_pair<Element>(mean_k[0], mean_k[1]);
      v[pair] = pack_pair<Element>(mean_v[0], mean_v[1]);
      variance[pair] = pack_pair<Element>(var[0], var[1]);
    }
  }
  static S2O_DEVICE void round_to_bf16(float (&pair)[2]) {
    const std::uint32_t packed = pack_pair<Bf16>(pair[0], pair[1]);
    pair[0] = unpack_low<Bf16>(packed);
    pair[1] = unpack_high<Bf16>(packed);
  }

  // One column for all unvisited slots: everything below fold_end minus what was visited.
  S2O_DEVICE void build_centroid() {
    const int chunk = thread_index() % Rows::kChunks;
    const int group = thread_index() / Rows::kChunks;
    if (thread_index() == 0) s_.num_visited = 0;
    sync_block(kThreads);
    ChunkSums total;
    total.clear();
    const std::int64_t whole = min_of_long(fold_end_ / args_.fold.fold_block, sums_.num_blocks);
    for (std::int64_t block = group; block < whole; block += kGroups) {
      add_block_sums(total, block, chunk);
    }
    for (std::int64_t slot = whole * args_.fold.fold_block + group; slot < fold_end_;
         slot += kGroups) {
      rows_.add(total, slot, chunk, 1.0f);
    }
    int visited = 0;
    for_executed_items([&](std::int64_t begin, std::int64_t count, bool is_run) {
      for (std::int64_t i = group; i < count; i += kGroups) {
        const std::int64_t slot = slot_of(begin + i, is_run);
        if (slot >= fold_end_) continue;
        rows_.add(total, slot, chunk, -1.0f);
        ++visited;
      }
    });
    if (chunk == 0 && visited > 0) atomic_add(&s_.num_visited, visited);
#pragma unroll
    for (int e = 0; e < kChunkElements; ++e) {
      s_.partial[group][0][chunk * kChunkElements + e] = total.k[e];
      s_.partial[group][1][chunk * kChunkElements + e] = total.v[e];
    }
    sync_block(kThreads);
    reduce_centroid(group, chunk);
  }

  S2O_DEVICE void reduce_centroid(int group, int chunk) {
    const int remaining = fold_end_ - s_.num_visited;
    ChunkSums total;
    total.clear();
    if (group == 0) {
      for (int other = 0; other < kGroups; ++other) {
#pragma unroll
        for (int e = 0; e < kChunkElements; ++e) {
          total.k[e] += s_.partial[other][0][chunk * kChunkElements + e];
          total.v[e] += s_.partial[other][1][chunk * kChunkElements + e];
        }
      }
    }
    // Columns beyond the first are empty: group g clears columns g, g + kGroups, ...
    for (int column = group; column < kFoldColumns; column += kGroups) {
      store_chunk(column, chunk, total, column == 0 ? remaining : 0);
    }
    for (int column = thread_index(); column < kFoldColumns; column += kThreads) {
      s_.bias[column] =
          column == 0 && remaining > 0 ? log2f_of(remaining) / args_.scale_log2 : kNegativeInfinity;
    }
    if (thread_index() == 0) s_.num_columns = remaining > 0 ? 1 : 0;
    sync_block(kThreads);
  }

  // One softmax step over the columns in shared memory.
  S2O_DEVICE void add_columns() {
    float logits[1][Tile::kKeyTiles][4];
#pragma unroll
    for (int n = 0; n < Tile::kKeyTiles; ++n) {
#pragma unroll
      for (int e = 0; e < 4; ++e) logits[0][n][e] = 0.0f;
    }
    if (args_.fold.kind == Compensation::kBlocksVariance) {
      tile_.template multiply_keys<true>(shared_address(s_.q), shared_address(s_.variance), logits);
      // spread_logit(scale^2 sum q^2 var), in units of raw logits.
      const float scale = args_.scale_log2 / kLog2E;
      const float inverse_scale = 1.0f / scale;
      const float factor = scale * scale / (kSquareScale * kSquareScale);
#pragma unroll
      for (int n = 0; n < Tile::kKeyTiles; ++n) {
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          logits[0][n][e] = spread_logit(logits[0][n][e] * factor) * inverse_scale;
        }
      }
    }
    tile_.template multiply_keys<false>(shared_address(s_.q), shared_address(s_.k), logits);
    const float* const bias = s_.bias + Tile::column_of(thread_index());
#pragma unroll
    for (int n = 0; n < Tile::kKeyTiles; ++n) {
#pragma unroll
      for (int e = 0; e < 4; ++e) logits[0][n][e] += bias[n * 8 + e % 2];
    }
    RowPair rows = tile_.rows(0);
    float step_sum[2];
    float correction[2];
    softmax_step(logits[0], args_.scale_log2, rows, step_sum, correction);
    tile_.rows(0) = rows;
    tile_.rescale(0, correction);
    tile_.multiply_values(shared_address(s_.v), logits);
    sync_block(kThreads);  // before the columns are overwritten
  }

  static S2O_DEVICE std::int64_t min_of_long(std::int64_t a, std::int64_t b) {
    return a < b ? a : b;
  }
  static S2O_DEVICE float log2f_of(int n) { return log_natural(static_cast<float>(n)) * kLog2E; }

  const AttentionKernelArgs& args_;
  const BlockSumsView& sums_;
  SharedFold<Traits>& s_;
  const std::int32_t plan_tile_;
  const int plan_head_;
  const std::int32_t fold_end_;
  const Rows rows_;
  Tile tile_;
};

}  // namespace s2o::device
