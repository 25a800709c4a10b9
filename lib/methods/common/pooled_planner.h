// Planning of methods that score blocks by pooled queries and keys, strip by strip of rows, and
// select by a rule of their own.
#pragma once

#include <algorithm>

#include "kernels/planning/pooled/ops.h"
#include "lib/methods/common/device_planning.h"

namespace s2o {

// Strips of rows whose scores fit `bytes`.
struct ScoreStrips {
  std::int32_t num_rows = 0;
  std::int32_t row_stride = 0;
  std::int32_t rows_at_once = 0;

  ScoreStrips(int num_heads, std::int32_t num_q_blocks, std::int32_t num_kv_blocks,
              std::int64_t bytes)
      : num_rows(num_q_blocks), row_stride(ceil_div<std::int32_t>(num_kv_blocks, 64) * 64) {
    const std::int64_t bytes_per_row = std::int64_t{2} * num_heads * row_stride;
    rows_at_once = static_cast<std::int32_t>(std::clamp<std::int64_t>(
        bytes / bytes_per_row / 64 * 64, 64, ceil_div(num_q_blocks, 64) * 64));
    rows_at_once = std::min(rows_at_once, num_q_blocks);
  }
  std::int64_t entries(int num_heads) const {
    return static_cast<std::int64_t>(num_heads) * rows_at_once * row_stride;
  }
};

// Pools, scores and selects; what differs between the methods is in the arguments and the rule.
class PooledPlanner : public TilePlanner {
  // Rows of block scores are computed and selected within this many bytes.
  static constexpr std::int64_t kScoreBytes = std::int64_t{1} << 29;

 public:
  PlanningCost cost() const override {
    const double d = problem_.head_dim;
    const double rows = static_cast<double>(problem_.seqlen) * d;
    const double heads = problem_.num_q_heads;
    const double pairs = 0.5 * heads * q_blocks_ * kv_blocks_;
    return {.flops = rows * (heads + problem_.num_kv_heads) + 2.0 * pairs * d,
            .bytes = 2.0 * rows * (heads + problem_.num_kv_heads) + 2.0 * 2.0 * pairs};
  }

 protected:
  PooledPlanner(const Problem& problem, int block_m, int block_n, int k_heads,
                const PlannedFold& fold, const PlannerLimits& limits)
      : TilePlanner(
            problem, block_m, block_n, /*pack=*/1, fold,
            [block_m, block_n](int tile) {
              return max_items_of_row(
                  ceil_div<std::int32_t>((static_cast<std::int64_t>(tile) + 1) * block_m, block_n));
            },
            limits),
        q_blocks_(ceil_div<std::int32_t>(problem.seqlen, block_m)),
        kv_blocks_(ceil_div<std::int32_t>(problem.seqlen, block_n)),
        k_heads_(k_heads),
        strips_(problem.num_q_heads, q_blocks_, kv_blocks_,
                limits.scratch_bytes > 0 ? limits.scratch_bytes : kScoreBytes) {
    const std::int64_t d = problem.head_dim;
    mean_q_ = workspace_.add<std::uint16_t>(problem.num_q_heads * q_blocks_ * d);
    mean_k_ = workspace_.add<std::uint16_t>(static_cast<std::int64_t>(k_heads) * kv_blocks_ * d);
    scores_ = workspace_.add<std::uint16_t>(strips_.entries(problem.num_q_heads));
  }

  PoolArgs pool_queries(const DeviceInput& input) const {
    return {.x = input.q,
            .means = mean_q_.data(),
            .seqlen = problem_.seqlen,
            .block = header_.block_m,
            .num_blocks = q_blocks_,
            .num_heads = problem_.num_q_heads};
  }
  PoolArgs pool_keys(const DeviceInput& input) const {
    return {.x = input.k,
            .means = mean_k_.data(),
            .seqlen = problem_.seqlen,
            .block = header_.block_n,
            .num_blocks = kv_blocks_,
            .num_heads = k_heads_,
            .heads_per_source = k_heads_ / problem_.num_kv_heads};
  }

  // Means as of zero-padded blocks; keys in the order of key_order_ where there is one.
  void prepare(const DeviceInput& input, PlanningKernels& kernels) const override {
    PoolArgs queries = pool_queries(input);
    PoolArgs keys = pool_keys(input);
    queries.divide_by_block = keys.divide_by_block = true;
    keys.order = key_order_.data();
    kernels.run(queries, input.elements());
    kernels.run(keys, input.elements());
  }

  // Runs the operation that selects by the rule of the method.
  virtual void select_rows(const RowArgs& rows, const DeviceInput& input,
                           PlanningKernels& kernels) const = 0;

  void plan_tiles(const TileBatch& batch, const DeviceInput& input,
                  PlanningKernels& kernels) const override {
    const int heads = problem_.num_q_heads;
    for (std::int32_t first = batch.first_tile; first < batch.end_tile;
         first += strips_.rows_at_once) {
      const std::int32_t rows = std::min(strips_.rows_at_once, batch.end_tile - first);
      kernels.run(BlockScoreArgs{.q = mean_q_.data(),
                                 .k = mean_k_.data(),
                                 .scores = scores_.data(),
                                 .num_heads = heads,
                                 .heads_per_k = heads / k_heads_,
                                 .num_q_blocks = q_blocks_,
                                 .num_kv_blocks = kv_blocks_,
                                 .first_row = first,
                                 .num_rows = rows,
                                 .row_stride = strips_.row_stride,
                                 .block_m = header_.block_m,
                                 .block_n = header_.block_n,
                                 .scale = problem_.softmax_scale},
                  input.elements());
      select_rows({.scores = scores_.data(),
                   .num_heads = heads,
                   .num_q_blocks = q_blocks_,
                   .num_kv_blocks = kv_blocks_,
                   .first_row = first,
                   .num_rows = rows,
                   .row_stride = strips_.row_stride,
                   .block_m = header_.block_m,
                   .block_n = header_.block_n,
                   .seqlen = problem_.seqlen,
                   .item_offsets = item_offsets_.data(),
                   .items = items_.data(),
                   .item_counts = item_counts_.data(),
                   .bad_row = bad_row_.data()},
                  input, kernels);
    }
  }

  const std::int32_t q_blocks_;
  const std::int32_t kv_blocks_;
  const int k_heads_;
  const ScoreStrips strips_;
  Workspace::Array<std::uint16_t> mean_q_, mean_k_, scores_;
};

}  // namespace s2o
