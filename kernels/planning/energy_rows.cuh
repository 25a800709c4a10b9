// Energies of key blocks against tiles of queries, and the selection (energy_args.h): one block of
// threads a tile. A product of the tile's queries with the mean keys, whose logits never leave the
// registers: per 64 mean keys the column sums of their exponentials relative to the largest logit
// of those 64, rescaled once the largest of the whole tile is known.
#pragma once

#include "kernels/device/cp_async.cuh"
#include "kernels/device/layout.cuh"
#include "kernels/device/mma_sm80.cuh"
#include "kernels/planning/emit_items.cuh"
#include "kernels/planning/energy_args.h"

namespace s2o::device {

inline constexpr int kEnergyThreads = 256;
inline constexpr int kEnergyWarps = kEnergyThreads / 32;
inline constexpr int kEnergyColumns = 64;  // mean keys of a step

template <int kHeadDim>
struct SharedEnergy {
  alignas(128) unsigned char q[tile_bytes(kEnergyBlock, kHeadDim)];
  alignas(128) unsigned char k[2][tile_bytes(kEnergyColumns, kHeadDim)];
  float warp_largest[2][kEnergyWarps];  // of each branch
  float warp_sums[2][kEnergyWarps][kEnergyColumns];
  float row_norm[kEnergyBlock];
  // Followed, for num_blocks rounded up to whole steps, by: energies of each branch, the largest
  // logit of each step and branch, and a bit per block.
};
S2O_HOST_DEVICE constexpr int energy_steps(int num_blocks) {
  return ceil_div(num_blocks, kEnergyColumns);
}
template <int kHeadDim>
constexpr int energy_bytes(int num_blocks) {
  return static_cast<int>(sizeof(SharedEnergy<kHeadDim>)) +
         energy_steps(num_blocks) * (2 * kEnergyColumns * 4 + 2 * 4 + kEnergyColumns / 8);
}

template <class Element, int kHeadDim>
class EnergyRows {
 public:
  S2O_DEVICE explicit EnergyRows(const EnergyArgs& args)
      : args_(args), s_(*reinterpret_cast<SharedEnergy<kHeadDim>*>(shared_memory())) {
    // Long tiles first.
    tile_ = args.num_q_tiles - 1 - block_index() / args.num_plan_heads;
    plan_head_ = block_index() % args.num_plan_heads;
    const int steps = energy_steps(args.num_blocks);
    energies_ = reinterpret_cast<float*>(shared_memory() + sizeof(SharedEnergy<kHeadDim>));
    step_largest_ = energies_ + 2 * steps * kEnergyColumns;
    bits_ = reinterpret_cast<std::uint32_t*>(step_largest_ + 2 * steps);
    branch_stride_ = steps * kEnergyColumns;
    num_branches_ = args.lifts != nullptr ? 2 : 1;
  }

  S2O_DEVICE void run() {
    const int last_block = static_cast<int>(last_position() / kEnergyBlock);
    for (int word = thread_index(); word <= last_block / 32; word += kEnergyThreads) {
      bits_[word] = 0;
    }
    const bool is_last = tile_ >= args_.num_q_tiles - args_.last_tiles;
    const int candidates = is_last ? 0 : num_candidates();
    if (candidates > 0) {
      load_queries();
      load_means(0, 0, candidates);
      copy_async_commit();
      for (int step = 0; step * kEnergyColumns < candidates; ++step) {
        if ((step + 1) * kEnergyColumns < candidates)
          load_means(step + 1, (step + 1) % 2, candidates);
        copy_async_commit();
        copy_async_wait<1>();
        sync_block(kEnergyThreads);
        if (step == 0) describe_rows(candidates);
        add_step(step, candidates);
      }
    }
    sync_block(kEnergyThreads);
    select(candidates);
    sync_block(kEnergyThreads);
    if (warp_index() == 0) finish(last_block, is_last);
  }

 private:
  static constexpr int kChunks = kHeadDim / kChunkElements;
  // Found anew where they are needed: the loop over the steps has no registers for them.
  S2O_DEVICE std::int64_t first_slot() const {
    return static_cast<std::int64_t>(tile_) * kEnergyBlock;
  }
  S2O_DEVICE std::int64_t end_slot() const {
    const std::int64_t end = args_.seqlen * args_.pack;
    return first_slot() + kEnergyBlock < end ? first_slot() + kEnergyBlock : end;
  }
  S2O_DEVICE std::int64_t first_position() const { return first_slot() / args_.pack; }
  S2O_DEVICE std::int64_t last_position() const { return (end_slot() - 1) / args_.pack; }
  static constexpr int kColumnTiles = kEnergyColumns / 8;

  S2O_DEVICE int num_candidates() const {
    switch (args_.rule) {
      case EnergyRule::kFlashPrefillV2:
        return static_cast<int>((last_position() + 1) / kEnergyBlock);
      case EnergyRule::kFlashPrefillV1:
        return tile_ + 1;
      case EnergyRule::kRbs:
        break;
    }
    return tile_;
  }
  // Row `row` of the tile takes part in the blocks below this.
  S2O_DEVICE int row_blocks(int row) const {
    const std::int64_t slot = first_slot() + row;
    switch (args_.rule) {
      case EnergyRule::kFlashPrefillV2:
        return slot < end_slot() ? static_cast<int>(slot / args_.pack / kEnergyBlock) + 1 : 0;
      case EnergyRule::kFlashPrefillV1:  // rows beyond the sequence are zero queries
        return static_cast<int>((slot + 1) / kEnergyBlock);
      case EnergyRule::kRbs:
        break;
    }
    return slot < end_slot() ? tile_ : 0;
  }

  S2O_DEVICE void load_queries() const {
    const int chunk = thread_index() % kChunks;
#pragma unroll 4
    for (int row = thread_index() / kChunks; row < kEnergyBlock; row += kEnergyThreads / kChunks) {
      const std::int64_t slot = first_slot() + row;
      const bool exists = slot < end_slot();
      const std::int64_t from = exists ? slot : first_slot();
      const std::int64_t head = plan_head_ * args_.pack + from % args_.pack;
      copy_async_16(shared_address(s_.q) +
                        static_cast<std::uint32_t>(swizzled_chunk_offset(kEnergyBlock, row, chunk)),
                    static_cast<const std::uint16_t*>(args_.q) +
                        (head * args_.seqlen + from / args_.pack) * kHeadDim +
                        chunk * kChunkElements,
                    exists);
    }
  }
  S2O_DEVICE void load_means(int step, int buffer, int candidates) const {
    const int chunk = thread_index() % kChunks;
    const std::int64_t kv_head = plan_head_ / args_.plan_heads_per_kv_head;
    const auto* base = static_cast<const std::uint16_t*>(args_.means) +
                       kv_head * args_.num_blocks * kHeadDim + chunk * kChunkElements;
#pragma unroll
    for (int row = thread_index() / kChunks; row < kEnergyColumns;
         row += kEnergyThreads / kChunks) {
      const int block = step * kEnergyColumns + row;
      const bool exists = block < candidates;
      copy_async_16(shared_address(s_.k[buffer]) + static_cast<std::uint32_t>(swizzled_chunk_offset(
                                                       kEnergyColumns, row, chunk)),
                    base + static_cast<std::int64_t>(exists ? block : 0) * kHeadDim, exists);
    }
  }

  // Queries into registers, and |q| of every row for the second branch.
  S2O_DEVICE void describe_rows(int candidates) {
    const auto lane = static_cast<unsigned>(lane_index());
    const MatrixPosition source = ldmatrix_a_source(lane);
    const std::uint32_t address =
        swizzled_lane_address(shared_address(s_.q), warp_index() * 16 + source.row, source.column);
#pragma unroll
    for (int step = 0; step < kHeadDim / 16; ++step) {
      load_matrix_x4(q_[step], swizzled_step_address(address, kEnergyBlock, 0, 2 * step));
    }
    const int row = warp_index() * 16 + accumulator_position(lane, 0).row;
    row_blocks_[0] = row_blocks(row);
    row_blocks_[1] = row_blocks(row + 8);
    whole_blocks_ = min_of(min_of(row_blocks_[0], row_blocks_[1]), candidates);
    for (int mask = 16; mask > 0; mask /= 2) {
      whole_blocks_ = min_of(whole_blocks_, shuffle_xor(whole_blocks_, mask));
    }
    if (num_branches_ == 1) return;
    // Elements of a row are spread over the quad that holds the row's logits.
    float square[2] = {0.0f, 0.0f};
#pragma unroll
    for (int step = 0; step < kHeadDim / 16; ++step) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {  // registers 0 and 2: the first row, 1 and 3: the second
        const float low = unpack_low<Element>(q_[step][i]);
        const float high = unpack_high<Element>(q_[step][i]);
        square[i % 2] = fused(low, low, fused(high, high, square[i % 2]));
      }
    }
    norm_[0] = square_root(quad_sum(square[0]));
    norm_[1] = square_root(quad_sum(square[1]));
  }

  S2O_DEVICE void add_step(int step, int candidates) {
    float logit[kColumnTiles][4];
#pragma unroll
    for (int n = 0; n < kColumnTiles; ++n) {
#pragma unroll
      for (int e = 0; e < 4; ++e) logit[n][e] = 0.0f;
    }
    const MatrixPosition source = ldmatrix_b_source(static_cast<unsigned>(lane_index()));
    const std::uint32_t address =
        swizzled_lane_address(shared_address(s_.k[step % 2]), source.row, source.column);
#pragma unroll
    for (int part = 0; part < kHeadDim / 16; ++part) {
#pragma unroll
      for (int n = 0; n < kColumnTiles; n += 2) {
        std::uint32_t b[4];
        load_matrix_x4(b, swizzled_step_address(address, kEnergyColumns, n * 8, 2 * part));
        multiply_accumulate<Element>(logit[n], q_[part], b[0], b[1]);
        multiply_accumulate<Element>(logit[n + 1], q_[part], b[2], b[3]);
      }
    }
    const bool whole = (step + 1) * kEnergyColumns <= whole_blocks_;
    const int first_column = step * kEnergyColumns + lane_index() % 4 * 2;
    whole ? add_branch<true>(0, candidates, first_column, logit)
          : add_branch<false>(0, candidates, first_column, logit);
    if (num_branches_ > 1) {
      lift(candidates, first_column, logit);
      whole ? add_branch<true>(1, candidates, first_column, logit)
            : add_branch<false>(1, candidates, first_column, logit);
    }
    sync_block(kEnergyThreads);
    combine_warps(step);
  }

  S2O_DEVICE void lift(int candidates, int first_column, float (&logit)[kColumnTiles][4]) const {
    const float* const lifts =
        args_.lifts +
        static_cast<std::int64_t>(plan_head_ / args_.plan_heads_per_kv_head) * args_.num_blocks;
#pragma unroll
    for (int n = 0; n < kColumnTiles; ++n) {
#pragma unroll
      for (int c = 0; c < 2; ++c) {
        const int column = first_column + n * 8 + c;
        const float radius = column < candidates ? load_global(lifts + column) : 0.0f;
        logit[n][c] = fused(norm_[0], radius, logit[n][c]);
        logit[n][2 + c] = fused(norm_[1], radius, logit[n][2 + c]);
      }
    }
  }

  // The warp's largest logit, in log2, and its sums of exponentials relative to that. With kWhole
  // every row takes part in every column.
  template <bool kWhole>
  S2O_DEVICE void add_branch(int branch, int candidates, int first_column,
                             const float (&logit)[kColumnTiles][4]) {
    const float scale = args_.scale * kLog2E;
    float largest = kNegativeInfinity;
    float extreme = 0.0f;
#pragma unroll
    for (int n = 0; n < kColumnTiles; ++n) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        if (!kWhole && !takes_part(first_column + n * 8 + e % 2, e / 2, candidates)) continue;
        extreme = max_of(extreme, absolute(logit[n][e]));
        largest = max_of(largest, logit[n][e]);
      }
    }
    if (extreme == -kNegativeInfinity) report_bad();
#pragma unroll
    for (int mask = 16; mask > 0; mask /= 2) largest = max_of(largest, shuffle_xor(largest, mask));
    largest *= scale;
    const float reference = largest == kNegativeInfinity ? 0.0f : largest;
    static_assert(kColumnTiles == 8);
    float sum[2];
    sum_over_rows(
        [&](int i) {
          const int column = first_column + i / 2 * 8 + i % 2;
          float terms[2];
#pragma unroll
          for (int row = 0; row < 2; ++row) {
            const float x = logit[i / 2][2 * row + i % 2];
            terms[row] = exp2_fast(fused(x, scale, -reference));
            if (!kWhole && !takes_part(column, row, candidates)) terms[row] = 0.0f;
          }
          return terms[0] + terms[1];
        },
        sum);
    s_.warp_sums[branch][warp_index()][lane_index() * 2] = sum[0];
    s_.warp_sums[branch][warp_index()][lane_index() * 2 + 1] = sum[1];
    if (lane_index() == 0) s_.warp_largest[branch][warp_index()] = largest;
  }
  // From warps to the block: one thread a column and branch.
  S2O_DEVICE void combine_warps(int step) {
    const int branch = thread_index() / kEnergyColumns;
    const int column = thread_index() % kEnergyColumns;
    if (branch >= num_branches_) return;
    float largest = kNegativeInfinity;
#pragma unroll
    for (int warp = 0; warp < kEnergyWarps; ++warp) {
      largest = max_of(largest, s_.warp_largest[branch][warp]);
    }
    float sum = 0.0f;
#pragma unroll
    for (int warp = 0; warp < kEnergyWarps; ++warp) {
      const float factor = step_scale(s_.warp_largest[branch][warp], largest);
      sum = fused(s_.warp_sums[branch][warp][column], factor, sum);
    }
    if (!(sum < -kNegativeInfinity)) report_bad();
    energies_[branch * branch_stride_ + step * kEnergyColumns + column] = sum;
    if (column == 0) step_largest_[branch * energy_steps(args_.num_blocks) + step] = largest;
  }
  S2O_DEVICE void report_bad() const {
    atomic_max(args_.bad_row, ~static_cast<std::uint32_t>(plan_head_ * args_.num_q_tiles + tile_));
  }
  S2O_DEVICE bool takes_part(int column, int i, int candidates) const {
    return column < row_blocks_[i] && column < candidates;
  }

  S2O_DEVICE void select(int candidates) {
    for (int branch = 0; branch < num_branches_; ++branch) {
      const float alpha = branch == 0 ? args_.alpha : args_.alpha_lifted;
      const float* const step_largest = step_largest_ + branch * energy_steps(args_.num_blocks);
      float* const energies = energies_ + branch * branch_stride_;
      float largest = kNegativeInfinity;
      for (int step = 0; step * kEnergyColumns < candidates; ++step) {
        largest = max_of(largest, step_largest[step]);
      }
      float loudest = 0.0f;
      for (int j = lane_index(); j < candidates; j += 32) {  // every warp finds the same
        loudest =
            max_of(loudest, energies[j] * step_scale(step_largest[j / kEnergyColumns], largest));
      }
      for (int mask = 16; mask > 0; mask /= 2) {
        loudest = max_of(loudest, shuffle_xor(loudest, mask));
      }
      const float cut = alpha * loudest;
      for (int first = warp_index() * 32; first < candidates; first += kEnergyThreads) {
        const int j = first + lane_index();
        const bool kept =
            j < candidates &&
            energies[j] * step_scale(step_largest[j / kEnergyColumns], largest) >= cut;
        const std::uint32_t word = ballot(kept);
        if (lane_index() == 0) bits_[first / 32] |= word;
      }
      sync_warp();
    }
  }
  static S2O_DEVICE float step_scale(float step_largest, float largest) {
    return step_largest == kNegativeInfinity ? 0.0f : exp2_fast(step_largest - largest);
  }

  // Forced blocks, then the items; one warp.
  S2O_DEVICE void finish(int last_block, bool is_last) const {
    const int first_block = static_cast<int>(first_position() / kEnergyBlock);
    int window_begin = first_block - args_.window_blocks + 1;
    if (is_last || window_begin < 0) window_begin = 0;
    const int sink_end = min_of(args_.sink_blocks, last_block + 1);
    for (int word = lane_index(); word <= last_block / 32; word += 32) {
      bits_[word] |= range_bits(word, 0, sink_end) | range_bits(word, window_begin, last_block + 1);
    }
    sync_warp();
    const std::int64_t tile = static_cast<std::int64_t>(plan_head_) * args_.num_q_tiles + tile_;
    TileItems items = {args_.items + load_global(args_.item_offsets + tile), 0};
    emit_blocks(bits_, last_block + 1, past_blocks(first_position(), kEnergyBlock), kEnergyBlock,
                args_.seqlen, items);
    if (lane_index() == 0) args_.item_counts[tile] = items.count;
  }
  // Bits of blocks [begin, end) in a word of the bitmap.
  static S2O_DEVICE std::uint32_t range_bits(int word, int begin, int end) {
    const int from = begin - word * 32 < 0 ? 0 : begin - word * 32;
    const int to = end - word * 32 > 32 ? 32 : end - word * 32;
    if (from >= to) return 0;
    const std::uint32_t below_end = to == 32 ? 0xffffffffu : (1u << to) - 1u;
    return below_end & ~((1u << from) - 1u);
  }

  const EnergyArgs& args_;
  SharedEnergy<kHeadDim>& s_;
  int tile_;
  int plan_head_;
  int branch_stride_;
  int num_branches_;
  float* energies_;      // [branch][step * kEnergyColumns], relative to the step's largest logit
  float* step_largest_;  // [branch][step], log2
  std::uint32_t* bits_;
  std::uint32_t q_[kHeadDim / 16][4];
  // Of this thread's two rows.
  int row_blocks_[2] = {0, 0};
  float norm_[2] = {0.0f, 0.0f};
  int whole_blocks_ = 0;  // all rows of the warp take part in those before
};

inline constexpr int kRadiusThreads = 128;

template <int kHeadDim>
struct SharedRadius {
  float sums[kRadiusThreads / (kHeadDim / kChunkElements)][kHeadDim];
  float mean[kHeadDim];
  float warp_largest[kRadiusThreads / 32];
};

// Radius of one complete block of keys; blocks of kEnergyBlock keys, one block of threads each.
template <class Element, int kHeadDim>
S2O_DEVICE void block_radius(const RadiusArgs& args) {
  constexpr int kChunks = kHeadDim / kChunkElements;
  constexpr int kGroups = kRadiusThreads / kChunks;
  constexpr int kRows = kEnergyBlock / kGroups;
  auto& shared = *reinterpret_cast<SharedRadius<kHeadDim>*>(shared_memory());
  const int block = block_index() % args.num_blocks;
  const std::int64_t head = block_index() / args.num_blocks;
  if (static_cast<std::int64_t>(block + 1) * kEnergyBlock > args.seqlen) return;
  const int chunk = thread_index() % kChunks;
  const int group = thread_index() / kChunks;
  const auto* rows =
      static_cast<const std::uint16_t*>(args.k) +
      (head * args.seqlen + static_cast<std::int64_t>(block) * kEnergyBlock) * kHeadDim +
      chunk * kChunkElements;
  float sum[kChunkElements];
#pragma unroll
  for (int e = 0; e < kChunkElements; ++e) sum[e] = 0.0f;
#pragma unroll 4
  for (int r = 0; r < kRows; ++r) {
    const Words4 words = load_global_16(rows + (group + r * kGroups) * kHeadDim);
#pragma unroll
    for (int e = 0; e < kChunkElements; ++e) {
      sum[e] += e % 2 == 0 ? unpack_low<Element>(words.word[e / 2])
                           : unpack_high<Element>(words.word[e / 2]);
    }
  }
#pragma unroll
  for (int e = 0; e < kChunkElements; ++e) shared.sums[group][chunk * kChunkElements + e] = sum[e];
  sync_block(kRadiusThreads);
  if (thread_index() < kHeadDim) {
    float total = 0.0f;
#pragma unroll 4
    for (int g = 0; g < kGroups; ++g) total += shared.sums[g][thread_index()];
    shared.mean[thread_index()] = divide(total, static_cast<float>(kEnergyBlock));
  }
  sync_block(kRadiusThreads);
  float largest = 0.0f;
#pragma unroll 4
  for (int r = 0; r < kRows; ++r) {
    const Words4 words = load_global_16(rows + (group + r * kGroups) * kHeadDim);
    float square = 0.0f;
#pragma unroll
    for (int e = 0; e < kChunkElements; ++e) {
      const float x = e % 2 == 0 ? unpack_low<Element>(words.word[e / 2])
                                 : unpack_high<Element>(words.word[e / 2]);
      const float deviation = x - shared.mean[chunk * kChunkElements + e];
      square = fused(deviation, deviation, square);
    }
#pragma unroll
    for (int mask = 1; mask < kChunks; mask *= 2) square += shuffle_xor(square, mask);
    largest = max_of(largest, square);
  }
#pragma unroll
  for (int mask = 16; mask > 0; mask /= 2) largest = max_of(largest, shuffle_xor(largest, mask));
  if (lane_index() == 0) shared.warp_largest[warp_index()] = largest;
  sync_block(kRadiusThreads);
  if (thread_index() != 0) return;
  for (int warp = 0; warp < kRadiusThreads / 32; ++warp) {
    largest = max_of(largest, shared.warp_largest[warp]);
  }
  args.radii[head * args.num_blocks + block] = square_root(largest);
}

inline constexpr int kLiftThreads = 1024;

// Lifts of one KV head, one block of threads: quantiles by counting, then r * beta.
// Shared memory: the radii of the head, then four order statistics.
S2O_DEVICE void radius_lifts_head(const RadiusArgs& args) {
  auto* const radii = reinterpret_cast<float*>(shared_memory());
  float* const statistics = radii + args.num_blocks;  // at places: median low, high; p90 low, high
  const std::int64_t head = block_index();
  const int complete = static_cast<int>(args.seqlen / kEnergyBlock);
  for (int b = thread_index(); b < complete; b += kLiftThreads) {
    radii[b] = args.radii[head * args.num_blocks + b];
  }
  sync_block(kLiftThreads);
  const double median_place = 0.5 * (complete - 1);
  const double high_place = 0.9 * (complete - 1);
  const int places[4] = {
      static_cast<int>(median_place), min_of(static_cast<int>(median_place) + 1, complete - 1),
      static_cast<int>(high_place), min_of(static_cast<int>(high_place) + 1, complete - 1)};
  for (int b = thread_index(); b < complete; b += kLiftThreads) {
    const float own = radii[b];
    int rank = 0;
    for (int other = 0; other < complete; ++other) {
      const float radius = radii[other];
      rank += radius < own || (radius == own && other < b) ? 1 : 0;
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if (rank == places[i]) statistics[i] = own;
    }
  }
  sync_block(kLiftThreads);
  const auto median_share = static_cast<float>(median_place - places[0]);
  const auto high_share = static_cast<float>(high_place - places[2]);
  for (int b = thread_index(); b < args.num_blocks; b += kLiftThreads) {
    float lift = 0.0f;
    if (b < complete) {
      const float low = statistics[0] + median_share * (statistics[1] - statistics[0]);
      const float high = statistics[2] + high_share * (statistics[3] - statistics[2]);
      const float radius = radii[b];
      const float raw =
          high > low ? divide(radius - low, high - low) : (radius > low ? 1.0f : 0.0f);
      lift = radius * max_of(min_of(raw, 1.0f), 0.0f);
    }
    args.lifts[head * args.num_blocks + b] = lift;
  }
}

}  // namespace s2o::device
