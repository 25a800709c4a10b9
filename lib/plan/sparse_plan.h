// An owning plan: what every method returns and the attention kernels execute.
// See kernels/common/plan_view.h for the meaning of each part.
#pragma once

#include <cstdint>
#include <vector>

#include "kernels/common/plan_view.h"
#include "kernels/common/problem.h"

namespace s2o {

struct PlanPass {
  std::vector<std::int32_t> query_order;     // [num_plan_heads, seqlen], may be empty
  std::vector<std::int32_t> key_order;       // [num_plan_heads, seqlen], may be empty
  std::vector<std::int64_t> item_offsets;    // [num_plan_heads * num_q_tiles + 1]
  std::vector<PlanItem> items;               // tiles in (plan head, tile) order
  std::vector<std::int32_t> gather_indices;  // shared by items, original token indices
  std::vector<std::int32_t> fold_end;        // [num_plan_heads * num_q_tiles], may be empty
  std::vector<float> head_taus;              // [num_plan_heads], may be empty
};

struct SparsePlan {
  // Everything but the pass pointers; `header.passes` is null.
  PlanView header;
  std::vector<PlanPass> passes;

  // A plan with tiles of block_m x block_n over all rows of the problem and one empty pass.
  SparsePlan(const Problem& problem, int block_m, int block_n, int pack = 1);

  std::int64_t num_tiles() const {  // of one pass
    return static_cast<std::int64_t>(header.num_plan_heads) * header.num_q_tiles;
  }
  std::int64_t tile_index(int plan_head, int tile) const {
    return static_cast<std::int64_t>(plan_head) * header.num_q_tiles + tile;
  }
  // Bytes of all arrays.
  std::int64_t workspace_bytes() const;
};

// Pointers into a SparsePlan; valid while the plan lives and is not changed.
class PlanPointers {
 public:
  explicit PlanPointers(const SparsePlan& plan);
  const PlanView& view() const { return view_; }

 private:
  std::vector<PassView> passes_;
  PlanView view_;
};

// Collects the items of each tile in any order of tiles (thread-safe across different tiles), then
// writes them to a pass in tile order.
class PlanBuilder {
 public:
  explicit PlanBuilder(const SparsePlan& plan);
  // Items are appended in visiting order.
  void add(int plan_head, int tile, const PlanItem& item);
  void finish(PlanPass& pass);

 private:
  int num_q_tiles_;
  std::vector<std::vector<PlanItem>> tiles_;
};

// Row range [first_slot, end_slot) of packed or plain rows of a tile, and the positions it spans.
struct TileRows {
  std::int64_t first_slot = 0;
  std::int64_t end_slot = 0;        // exclusive, <= seqlen * pack
  std::int64_t first_position = 0;  // smallest original position if the query order is identity
  std::int64_t last_position = 0;   // largest, inclusive
};
TileRows tile_rows(const Problem& problem, const PlanView& plan, int tile);

// Every key at or before the tile's rows, as one causal run: dense attention.
SparsePlan dense_plan(const Problem& problem, int block_m, int block_n);

// Adds the selected key blocks of one tile (a byte per block, block b = keys
// [b * block, (b + 1) * block) cut at seqlen) as runs in ascending order. Adjacent blocks merge;
// the mask class is derived from positions. Blocks wholly after the tile are dropped (causality).
void add_key_blocks(const Problem& problem, const SparsePlan& plan, PlanBuilder& builder,
                    int plan_head, int tile, const std::uint8_t* selected, int block);

// Checks every invariant of a plan: indices inside [0, seqlen), orders are permutations, mask class
// kNone only where it holds, no key twice in a (plan head, tile) over all passes, runs inside the
// key slots, fold_end <= first position of the tile. Throws Error naming head, tile and index.
void check_plan(const Problem& problem, const SparsePlan& plan);

}  // namespace s2o
