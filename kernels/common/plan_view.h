// What an attention kernel executes: for every tile of query rows, a list of items (runs of keys
// and gathers of keys) in visiting order, an optional early stop, an optional compensation of what
// was left out. Pointers only, so the same struct describes host and device plans;
// lib/plan/sparse_plan.h owns the memory.
//
// Query tiles. A pass works on "plan heads". With pack == 1 a plan head is a query head and slot i
// of tile t is row t * block_m + i. With pack == group_size (FlashPrefill V2) a plan head is a KV
// head with seqlen * pack packed rows: row r is position r / pack of query head
// plan_head * pack + r % pack.
#pragma once

#include <cmath>
#include <cstdint>

#include "kernels/common/host_device.h"

namespace s2o {

enum class ItemKind : std::uint8_t {
  kRun,     // key slots [begin, begin + count); a slot is a token unless the pass has a key_order
  kGather,  // keys gather_indices[begin .. begin + count), original token indices
};

enum class MaskClass : std::uint8_t {
  kNone,    // every key is visible to every query row of the tile, and lies below seqlen
  kCausal,  // key visible iff key <= query, both original positions, and key < seqlen
  kWindow,  // as kCausal, and (key < window_sink or query - key < window_size)
};

struct PlanItem {
  std::int64_t begin = 0;
  std::int32_t count = 0;
  ItemKind kind = ItemKind::kRun;
  MaskClass mask = MaskClass::kNone;
  bool stoppable = false;  // the early stop may end the tile inside this item
};

enum class StopReduce : std::uint8_t { kMean, kMax };

// Early stop of S2O. After each step of block_n keys of a stoppable item,
// gain = p_blk / l_new per row; the tile skips the rest of its stoppable items once
// reduce(gain) < tau for `patience` steps in a row and at least `min_steps` were done.
struct StopRule {
  float tau = 0.0f;  // 0 never stops; the largest of PassView::head_taus, where it has those
  StopReduce reduce = StopReduce::kMean;
  int patience = 1;
  int min_steps = 1;
};

enum class Compensation : std::uint8_t {
  kNone,
  kCentroid,        // all unvisited keys below fold_end: one column (mean k, mean v, log count)
  kBlocks,          // one such column per fold_block consecutive key slots
  kBlocksVariance,  // and + spread_logit(scale^2 * sum_d q_d^2 var_d) on the logit
};

// log mean exp(x) - mean(x) of logits with the given variance: half the variance (the second
// cumulant) up to a standard deviation of 1, linear beyond. The Gaussian cumulant overshoots for
// wide blocks, whose logits are bounded: for uniformly spread logits the exact value is
// log(sinh(sqrt(3) s) / (sqrt(3) s)), and this form stays within 0.07 of it up to s = 2.
template <class Scalar>
S2O_ANYWHERE constexpr Scalar spread_logit(Scalar variance) {
  if (variance <= Scalar(1)) return Scalar(0.5) * variance;
#if defined(__CUDA_ARCH__)
  return sqrtf(variance) - Scalar(0.5);
#else
  return std::sqrt(variance) - Scalar(0.5);
#endif
}

// What stands in for the keys that a tile did not visit. Folded columns are derived after the stop
// from what the tile visited; keys at or beyond fold_end[tile] are never folded.
struct FoldRule {
  Compensation kind = Compensation::kNone;
  int fold_block = 128;
  bool round_bf16 = false;  // mean k and mean v rounded to bf16 (FlashPrefill V2, level A)
};

struct PassView {
  // [num_plan_heads, seqlen]: row slot -> original position, a permutation inside each segment.
  // May be null (identity); always null with pack > 1.
  const std::int32_t* query_order = nullptr;
  // [num_plan_heads, seqlen]: key slot of a run -> original token. May be null (identity).
  const std::int32_t* key_order = nullptr;
  const std::int64_t* item_offsets = nullptr;  // [num_plan_heads * num_q_tiles + 1], into items
  // [num_plan_heads * num_q_tiles]: items of each tile, from item_offsets[tile] on, where a planner
  // leaves room between tiles. May be null: a tile's items end where the next tile's begin.
  const std::int32_t* item_counts = nullptr;
  const PlanItem* items = nullptr;
  const std::int32_t* gather_indices = nullptr;
  // [num_plan_heads * num_q_tiles]: number of leading key slots that may be folded. May be null.
  const std::int32_t* fold_end = nullptr;
  // [num_plan_heads]: StopRule::tau of each plan head. May be null: that of the plan. Heads whose
  // tau is 0 have no stoppable items.
  const float* head_taus = nullptr;

  S2O_ANYWHERE float tau_of(int plan_head, const StopRule& stop) const {
    return head_taus == nullptr ? stop.tau : head_taus[plan_head];
  }
};

struct PlanView {
  int block_m = 128;  // query rows of a tile
  int block_n = 128;  // keys of a step; the early stop decides after each
  int pack = 1;       // see top of file
  int num_plan_heads = 0;
  int num_q_tiles = 0;
  std::int32_t window_sink = 0;  // for MaskClass::kWindow, tokens
  std::int32_t window_size = 0;
  // SpargeAttn's PV skip: a step whose largest (tile max - running max), in log2 units, is
  // <= -pv_skip_threshold adds nothing; not applied to the last pv_skip_exempt steps. 0 = off.
  float pv_skip_threshold = 0.0f;
  int pv_skip_exempt = 1;
  StopRule stop;
  FoldRule fold;
  // Passes run one after the other; a later pass resumes from the (out, lse) of the earlier one,
  // which is an exact log-sum-exp merge.
  const PassView* passes = nullptr;
  int num_passes = 0;
};

// What a tile really did, written by the kernel: [num_passes, num_plan_heads, num_q_tiles].
struct TileStats {
  std::int32_t stop_steps = 0;    // steps of stoppable items executed
  std::int32_t total_steps = 0;   // all steps executed, folds excluded
  std::int32_t fold_columns = 0;  // folded columns added
  std::int32_t pv_skipped = 0;    // steps whose exponentials and PV product were skipped
};

}  // namespace s2o
