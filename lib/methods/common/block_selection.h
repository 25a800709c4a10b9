// Building blocks of the methods that select keys: rounding levels, pooled means, scores, softmax
// rows, rankings, top-cdf rules, and the way from block masks to a plan.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "kernels/common/ceil_div.h"
#include "lib/config/params.h"
#include "lib/input/attention_input.h"
#include "lib/plan/sparse_plan.h"

namespace s2o {

// The r(x) of the method definitions: one rounding to the activation type. At level A ("official")
// that is the type in which Q and K are stored (fp32: no rounding); at level B ("fp32") identity.
class Rounder {
 public:
  Rounder() = default;  // identity
  explicit Rounder(StorageDType dtype) : dtype_(dtype) {}

  float operator()(float x) const;
  void apply(std::span<float> values) const;

 private:
  StorageDType dtype_ = StorageDType::kF32;
};

// Parameter `rounding`: "official" (level A, default) or "fp32" (level B).
ParamSpec rounding_spec();
Rounder make_rounder(const ParamSet& params, const AttentionInput& input);

// What a pooled mean of a partial last block is divided by.
enum class PoolDivisor {
  kRealTokens,  // the tokens it has
  kBlock,       // the block size, as if it were padded with zeros
};

// Means of consecutive blocks of rows; fp32 sums, one rounding at the end.
// x [seqlen, head_dim] -> [ceil(seqlen / block), head_dim]
std::vector<float> pooled_means(const float* x, std::int64_t seqlen, int head_dim, int block,
                                PoolDivisor divisor, const Rounder& round);

// out [num_a, num_b] = r(a b^T), accumulated in fp32. a [num_a, head_dim], b [num_b, head_dim].
void rounded_scores(const float* a, std::int64_t num_a, const float* b, std::int64_t num_b,
                    std::int64_t head_dim, const Rounder& round, float* out);

// x = r(x * factor)
void scale_rounded(std::span<float> x, float factor, const Rounder& round);

// x = exp(x - shift). The result for a value depends neither on where it stands nor on the address
// of the buffer, so equal scores stay equal and ties stay ties.
void exp_shifted(std::span<float> x, float shift);

// Softmax in place, fp32; -infinity becomes exactly 0. A row without a finite largest entry (all
// -infinity, or any NaN) becomes all zeros and the result is false.
bool softmax_row(std::span<float> row);

// Indices from the highest score to the lowest; equal scores by lower index, NaN last.
std::vector<std::int32_t> order_descending(std::span<const float> scores);
// The first min(count, size) of order_descending, in that order.
std::vector<std::int32_t> top_indices(std::span<const float> scores, std::int64_t count);

// Top-cdf rules over scores in descending order. Running sums are kept in fp64 and rounded once to
// fp32 (or by `stored`) before each comparison: what a parallel scan approximates, without the
// drift of a long fp32 chain.
//
// cross-in: items up to and including the one whose running sum first reaches `target`; nullopt
// when the sum never does.
std::optional<std::int64_t> cross_in_count(std::span<const float> sorted, float target);
// cross-out: leading items whose inclusive running sum is still <= `target`.
std::int64_t cross_out_count(std::span<const float> sorted, float target,
                             const Rounder& stored = Rounder());

// Which key blocks each query tile of one head visits.
class BlockMask {
 public:
  BlockMask() = default;
  BlockMask(std::int64_t num_q_blocks, std::int64_t num_kv_blocks)
      : num_q_blocks_(num_q_blocks),
        num_kv_blocks_(num_kv_blocks),
        selected_(static_cast<std::size_t>(num_q_blocks * num_kv_blocks), 0) {}

  std::int64_t num_q_blocks() const { return num_q_blocks_; }
  std::int64_t num_kv_blocks() const { return num_kv_blocks_; }
  std::uint8_t* row(std::int64_t q_block) { return selected_.data() + q_block * num_kv_blocks_; }
  const std::uint8_t* row(std::int64_t q_block) const {
    return selected_.data() + q_block * num_kv_blocks_;
  }
  bool at(std::int64_t q_block, std::int64_t kv_block) const { return row(q_block)[kv_block] != 0; }
  void set(std::int64_t q_block, std::int64_t kv_block) { row(q_block)[kv_block] = 1; }
  void fill() { selected_.assign(selected_.size(), 1); }

 private:
  std::int64_t num_q_blocks_ = 0;
  std::int64_t num_kv_blocks_ = 0;
  std::vector<std::uint8_t> selected_;  // [num_q_blocks, num_kv_blocks]
};

inline std::int64_t num_blocks(std::int64_t seqlen, int block) { return ceil_div(seqlen, block); }

// A plan that visits the selected blocks in ascending order. `masks` has one entry per query head,
// [ceil(seqlen / block_m), ceil(seqlen / block_n)]; blocks after the tile are ignored.
SparsePlan plan_from_block_masks(const Problem& problem, int block_m, int block_n,
                                 const std::vector<BlockMask>& masks);

// Parameter `compensation`: "none" (default), "centroid", "blocks", "blocks_variance"; and its
// value.
ParamSpec compensation_spec();
Compensation compensation_of(const ParamSet& params);

}  // namespace s2o
