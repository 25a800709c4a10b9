// Energies of key blocks against tiles of queries, and the selection (ops.h): one block of
// threads a tile. A product of the tile's queries with the mean keys, whose logits never leave the
// registers: per 64 mean keys the column sums of their exponentials relative to the largest logit
// of those 64, rescaled once the largest of the whole tile is known.
#pragma once

#include "kernels/device/cp_async.cuh"
#include "kernels/device/layout.cuh"
#include "kernels/device/mma_sm80.cuh"
#include "kernels/planning/block_energy/energy_tile.cuh"
#include "kernels/planning/launch.cuh"

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
  S2O_DEVICE explicit EnergyRows(const BlockEnergyArgs& args)
      : args_(args),
        s_(*reinterpret_cast<SharedEnergy<kHeadDim>*>(shared_memory())),
        // Long tiles first.
        tile_(args, block_index() % args.num_plan_heads,
              args.end_tile - 1 - block_index() / args.num_plan_heads) {
    const int steps = energy_steps(args.num_blocks);
    energies_ = reinterpret_cast<float*>(shared_memory() + sizeof(SharedEnergy<kHeadDim>));
    step_largest_ = energies_ + 2 * steps * kEnergyColumns;
    bits_ = reinterpret_cast<std::uint32_t*>(step_largest_ + 2 * steps);
    branch_stride_ = steps * kEnergyColumns;
    num_branches_ = args.lifts != nullptr ? 2 : 1;
  }

  S2O_DEVICE void run() {
    const int last_block = tile_.last_block();
    for (int word = thread_index(); word <= last_block / 32; word += kEnergyThreads) {
      bits_[word] = 0;
    }
    const int candidates = tile_.num_candidates();
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
    if (warp_index() == 0) tile_.finish(bits_);
  }

 private:
  static constexpr int kChunks = kHeadDim / kChunkElements;
  static constexpr int kColumnTiles = kEnergyColumns / 8;

  S2O_DEVICE void load_queries() const {
    const int chunk = thread_index() % kChunks;
#pragma unroll 4
    for (int row = thread_index() / kChunks; row < kEnergyBlock; row += kEnergyThreads / kChunks) {
      const std::int64_t slot = tile_.first_slot() + row;
      const bool exists = slot < tile_.end_slot();
      const std::int64_t from = exists ? slot : tile_.first_slot();
      const std::int64_t head = tile_.plan_head() * args_.pack + from % args_.pack;
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
    const std::int64_t kv_head = tile_.kv_head();
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
    row_blocks_[0] = tile_.row_blocks(row);
    row_blocks_[1] = tile_.row_blocks(row + 8);
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
        args_.lifts + static_cast<std::int64_t>(tile_.kv_head()) * args_.num_blocks;
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
    if (extreme == -kNegativeInfinity) tile_.report_bad();
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
      const float factor = reference_scale(s_.warp_largest[branch][warp], largest);
      sum = fused(s_.warp_sums[branch][warp][column], factor, sum);
    }
    if (!(sum < -kNegativeInfinity)) tile_.report_bad();
    energies_[branch * branch_stride_ + step * kEnergyColumns + column] = sum;
    if (column == 0) step_largest_[branch * energy_steps(args_.num_blocks) + step] = largest;
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
        loudest = max_of(loudest,
                         energies[j] * reference_scale(step_largest[j / kEnergyColumns], largest));
      }
      for (int mask = 16; mask > 0; mask /= 2) {
        loudest = max_of(loudest, shuffle_xor(loudest, mask));
      }
      const float cut = alpha * loudest;
      for (int first = warp_index() * 32; first < candidates; first += kEnergyThreads) {
        const int j = first + lane_index();
        const bool kept =
            j < candidates &&
            energies[j] * reference_scale(step_largest[j / kEnergyColumns], largest) >= cut;
        const std::uint32_t word = ballot(kept);
        if (lane_index() == 0) bits_[first / 32] |= word;
      }
      sync_warp();
    }
  }

  const BlockEnergyArgs& args_;
  SharedEnergy<kHeadDim>& s_;
  const EnergyTile tile_;
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

template <class Element, int kHeadDim>
struct EnergyRowsKernel {
  static constexpr const char* kName = "planning: energies";
  static constexpr int kThreads = kEnergyThreads;
  static constexpr int kMinBlocks = 2;
  static Grid grid(const BlockEnergyArgs& args) {
    return {.blocks = std::int64_t{args.num_plan_heads} * (args.end_tile - args.first_tile),
            .shared_bytes = static_cast<std::size_t>(energy_bytes<kHeadDim>(args.num_blocks))};
  }
  S2O_DEVICE static void run(const BlockEnergyArgs& args) {
    EnergyRows<Element, kHeadDim>(args).run();
  }
};

}  // namespace s2o::device
