// THE definition of sparsity, compute density and pair density, for every method.
//
// compute_density = pairs of all tiles executed / pairs that a dense causal kernel with the same
// tile shape executes. A step costs (rows of the tile that exist) x block_n pairs, whatever is
// masked; the last, partial step of an item is a whole step. Folded columns cost
// (rows) x (columns rounded up to kFoldColumnTile). Dense: each tile runs ceil(keys up to its last
// position / block_n) steps. pair_density = unmasked causal pairs executed / causal pairs; folded
// columns do not count in it. sparsity = 1 - compute_density.
#pragma once

#include <cstdint>
#include <vector>

#include "kernels/common/plan_view.h"
#include "kernels/common/problem.h"
#include "lib/plan/sparse_plan.h"

namespace s2o {

// Key granularity of the bf16 tensor-core product P V (k = 16): folded columns are padded to it.
inline constexpr int kFoldColumnTile = 16;

struct WorkCounts {
  std::int64_t executed_pairs = 0;  // tiles executed, masked lanes included, folds included
  std::int64_t folded_pairs = 0;    // the part of executed_pairs that is folded columns
  std::int64_t dense_pairs = 0;     // what the dense kernel of the same tile shape executes
  std::int64_t visited_pairs = 0;   // unmasked causal pairs executed, folds excluded
  std::int64_t causal_pairs = 0;    // seqlen (seqlen + 1) / 2 per head

  double compute_density() const {
    return static_cast<double>(executed_pairs) / static_cast<double>(dense_pairs);
  }
  double pair_density() const {
    return static_cast<double>(visited_pairs) / static_cast<double>(causal_pairs);
  }
  WorkCounts& operator+=(const WorkCounts& other);
};

struct Work {
  WorkCounts total;
  std::vector<WorkCounts> per_head;  // [num_q_heads]; packed rows are counted at their query head
};

// `stats` is what attention reported: [num_passes, num_plan_heads, num_q_tiles].
Work count_work(const Problem& problem, const SparsePlan& plan,
                const std::vector<TileStats>& stats);

}  // namespace s2o
