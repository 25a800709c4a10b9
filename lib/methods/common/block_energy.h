// Selecting key blocks by their energy relative to the loudest block of a query tile: the rule that
// FlashPrefill V1, FlashPrefill V2 and RBS-Attention share. They differ in the tile, in which rows
// take part for which block, and in the logits.
//
// Blocks have `block` keys; T = ceil(seqlen / block). Blocks are numbered from 0, positions are
// original token positions.
#pragma once

#include <Eigen/Core>
#include <cstdint>
#include <span>
#include <vector>

#include "lib/input/attention_input.h"
#include "lib/methods/common/block_selection.h"
#include "lib/plan/sparse_plan.h"

namespace s2o {

using LogitMatrix = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;

// Query rows of a tile in slot order, [rows of the tile, head_dim]: plain rows of a query head, or
// packed rows of the query heads of a KV head (position-major: slot r is position r / pack of head
// plan_head * pack + r % pack).
LogitMatrix query_tile_rows(const AttentionInput& input, const SparsePlan& plan, int plan_head,
                            int tile);

// Mean keys of the blocks, one matrix [T, head_dim] per KV head: fp32 means over the real tokens of
// the block, then rounded.
std::vector<LogitMatrix> block_mean_keys(const AttentionInput& input, int block,
                                         const Rounder& round);

// S_j = sum over the rows r that take part in block j of exp(logits(r, j) - M), with ONE maximum M
// over everything that takes part in the tile, not one per row: no row softmax.
//   logits      [rows, >= num_candidates], natural-log units (softmax_scale applied)
//   row_blocks  [rows]: row r takes part in the blocks j < row_blocks[r] (cut at num_candidates)
// Returns [num_candidates]; a block without any row has energy 0.
std::vector<float> tile_energies(const Eigen::Ref<const LogitMatrix>& logits,
                                 std::span<const std::int32_t> row_blocks, int num_candidates);

// ORs selected[j] |= S_j >= alpha * max_j S_j over all candidates, forced ones included. There is
// no ranking, hence no tie rule. alpha = 0 keeps every candidate, alpha = 1 the loudest only.
void select_by_energy(std::span<const float> energies, float alpha, std::uint8_t* selected);

// Blocks that are kept whatever their energy.
struct ForcedBlocks {
  int sink_blocks;    // the first blocks of the sequence
  int window_blocks;  // blocks up to the diagonal; the diagonal block counts
  int last_tiles;     // query tiles at the end of the sequence that are dense
};
// Parameters sink_blocks, window_blocks and last_tiles.
ForcedBlocks forced_blocks_of(const ParamSet& params);

// ORs the forced blocks of a query tile whose first row lies in block `first_block` and whose last
// row lies in `last_block`: sink, first_block - window + 1 ... last_block, and everything up to
// last_block when the tile is one of the dense last ones. Nothing beyond last_block.
void force_blocks(const ForcedBlocks& forced, int first_block, int last_block, bool is_last_tile,
                  std::uint8_t* selected);

// FlashPrefill V2: candidates are the blocks wholly visible to the LAST row of the tile, and a row
// takes part in a block iff it sees the block's FIRST key.
inline int v2_candidates(std::int64_t last_position, int block) {
  return static_cast<int>((last_position + 1) / block);
}
inline int v2_row_blocks(std::int64_t position, int block) {
  return static_cast<int>(position / block + 1);
}

// FlashPrefill V1: candidates are all blocks up to the diagonal one, and a row takes part in a
// block iff it sees the block's LAST key, so only the tile's last row votes on the diagonal block.
inline int v1_row_blocks(std::int64_t position, int block) {
  return static_cast<int>((position + 1) / block);
}

// Quantile of `values` at `fraction` in [0, 1] with linear interpolation between order statistics
// (position fraction * (n - 1)). `values` must not be empty.
float quantile_linear(std::vector<float> values, double fraction);

// RBS: radius r_b = max |k - c_b| over the keys of each COMPLETE block, c_b its fp32 mean key.
// keys [seqlen, head_dim] -> [floor(seqlen / block)]
std::vector<float> block_radii(const float* keys, std::int64_t seqlen, int head_dim, int block);

// RBS: beta_b = clip((r_b - median) / (p90 - median), 0, 1); when p90 equals the median, beta_b = 1
// iff r_b exceeds it. The quantiles are over all radii given: those of the whole sequence.
std::vector<float> radius_weights(const std::vector<float>& radii);
// u_b = r_b * beta_b: |q_t| u_b is added to the unscaled logit of block b.
std::vector<float> radius_lifts(const std::vector<float>& radii);

}  // namespace s2o
