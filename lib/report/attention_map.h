// One head's attention, and what a plan visits of it, pooled to a grid of pixels; no seqlen^2
// memory.
#pragma once

#include <cstdint>
#include <vector>

#include "kernels/attention/attention.h"
#include "lib/input/attention_input.h"
#include "lib/plan/sparse_plan.h"
#include "lib/plan/work.h"

namespace s2o {

// Values of a grid, row by row: row = queries from first to last, column = keys.
struct PixelGrid {
  int rows = 0;
  int columns = 0;
  std::vector<double> values;  // [rows, columns]

  PixelGrid(int num_rows, int num_columns, double value);
  double& at(int row, int column) {
    return values[static_cast<std::size_t>(row) * static_cast<std::size_t>(columns) +
                  static_cast<std::size_t>(column)];
  }
  double at(int row, int column) const { return const_cast<PixelGrid*>(this)->at(row, column); }
};

// Where a value means nothing: a pixel without a causal pair, a step that a tile does not have.
inline constexpr double kNoValue = -1.0;

// The part of a plan that concerns one query head, executed on its own.
struct ExecutedHead {
  const AttentionInput* input = nullptr;
  int q_head = 0;
  Problem problem;               // `pack` query heads and one KV head
  SparsePlan plan;               // one plan head
  std::vector<TileStats> stats;  // [num_passes, num_q_tiles]
  WorkCounts work;               // of the query head
};

// Cuts the plan head of `q_head` out of `plan` and runs attention_ref on it, for its stop steps.
// `input` must outlive the result.
ExecutedHead execute_head(const AttentionInput& input, const SparsePlan& plan, int q_head);

// Natural log of the softmax normaliser of every row of one head, dense. [seqlen]
std::vector<float> dense_lse(const AttentionInput& input, int q_head);

// Softmax mass of a pixel's pairs, mean over the pixel's rows. `lse` is dense_lse of the head. The
// grid has min(pixels, seqlen) rows and columns; pixel p spans [p * seqlen / n, (p + 1) * seqlen /
// n).
PixelGrid pooled_attention(const AttentionInput& input, int q_head, const std::vector<float>& lse,
                           int pixels);

// Share of a pixel's causal pairs that the head's rows visited. Folded columns visit nothing.
PixelGrid visited_share(const ExecutedHead& head, int pixels);

// A plan in its own coordinates: one row per query tile (in the plan's query order), one column per
// step of block_n keys. Steps that cannot be skipped come first, then the others in visiting order.
struct VisitingView {
  PixelGrid mass;             // dense softmax mass of a step, mean over the tile's rows; kNoValue
                              // beyond the tile's last step
  std::vector<int> fixed;     // [num_q_tiles] steps that cannot be skipped
  std::vector<int> executed;  // [num_q_tiles] steps until the stop, fixed ones included
};
VisitingView visiting_view(const ExecutedHead& head, const std::vector<float>& lse);

}  // namespace s2o
