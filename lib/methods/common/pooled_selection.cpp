#include "lib/methods/common/pooled_selection.h"

#include <algorithm>
#include <numeric>

#include "kernels/common/parallel.h"
#include "lib/methods/common/device_planning.h"

namespace s2o {

ParamSpec pooled_block_size_spec() {
  return ParamSpec::integer_of("block_size", 128, {16, 32, 64, 128},
                               "tokens of a query and a key block");
}

std::vector<float> pooled_scores(const float* q, const float* k, std::int64_t seqlen, int head_dim,
                                 int block, float scale, const Rounder& round) {
  const std::vector<float> mean_q =
      pooled_means(q, seqlen, head_dim, block, PoolDivisor::kBlock, round);
  const std::vector<float> mean_k =
      pooled_means(k, seqlen, head_dim, block, PoolDivisor::kBlock, round);
  const std::int64_t count = num_blocks(seqlen, block);
  std::vector<float> scores(static_cast<std::size_t>(count * count));
  rounded_scores(mean_q.data(), count, mean_k.data(), count, head_dim, round, scores.data());
  scale_rounded(scores, scale, round);
  return scores;
}

void select_cross_in(std::span<const float> probability, double threshold, std::uint8_t* selected) {
  if (threshold >= 1.0) {
    std::fill(selected, selected + probability.size(), std::uint8_t{1});
    return;
  }
  const std::vector<std::int32_t> order = order_descending(probability);
  std::vector<float> sorted;
  sorted.reserve(order.size());
  for (const std::int32_t j : order) sorted.push_back(probability[static_cast<std::size_t>(j)]);
  const std::int64_t count = cross_in_count(sorted, static_cast<float>(threshold)).value_or(0);
  for (std::int64_t rank = 0; rank < count; ++rank) {
    selected[order[static_cast<std::size_t>(rank)]] = 1;
  }
}

void select_pooled_row(std::span<const float> scores, std::int64_t allowed, double threshold,
                       std::uint8_t* selected) {
  std::vector<float> probability(scores.begin(), scores.begin() + allowed);
  softmax_row(probability);
  select_cross_in(probability, threshold, selected);
}

SparsePlan plan_pooled_rows(const AttentionInput& input, const ParamSet& params, int block,
                            const PooledRowRule& rule) {
  const Problem& problem = input.problem;
  const Rounder round = make_rounder(params, input);
  const std::int64_t count = num_blocks(problem.seqlen, block);
  std::vector<BlockMask> masks(static_cast<std::size_t>(problem.num_q_heads),
                               BlockMask(count, count));
  parallel_for(problem.num_q_heads, [&](std::int64_t head) {
    const std::vector<float> scores =
        pooled_scores(input.q_head(static_cast<int>(head)),
                      input.k_head(static_cast<int>(head / problem.group_size())), problem.seqlen,
                      problem.head_dim, block, problem.softmax_scale, round);
    BlockMask& mask = masks[static_cast<std::size_t>(head)];
    for (std::int64_t i = 0; i < count; ++i) {
      const float* const row = scores.data() + i * count;
      std::vector<float> probability(row, row + i + 1);
      softmax_row(probability);
      rule(probability, mask.row(i));
      mask.set(i, 0);
      mask.set(i, i);
    }
  });
  SparsePlan plan = plan_from_block_masks(problem, block, block, masks);
  apply_fold(planned_fold(params, block), problem, plan);
  return plan;
}

std::vector<std::int32_t> order_inside_segments(std::span<const float> mass, std::int64_t seqlen,
                                                std::int64_t segment) {
  std::vector<std::int32_t> order(static_cast<std::size_t>(seqlen));
  std::iota(order.begin(), order.end(), 0);
  const std::int64_t end = complete_segments_end(seqlen, segment);
  for (std::int64_t first = 0; first < end; first += segment) {
    const std::vector<std::int32_t> ranked = order_descending(
        mass.subspan(static_cast<std::size_t>(first), static_cast<std::size_t>(segment)));
    std::transform(ranked.begin(), ranked.end(), order.begin() + first,
                   [first](std::int32_t i) { return static_cast<std::int32_t>(first) + i; });
  }
  return order;
}

std::vector<float> gather_rows(const float* x, std::span<const std::int32_t> order, int head_dim) {
  std::vector<float> rows(order.size() * static_cast<std::size_t>(head_dim));
  for (std::size_t slot = 0; slot < order.size(); ++slot) {
    std::copy_n(x + static_cast<std::int64_t>(order[slot]) * head_dim, head_dim,
                rows.begin() + static_cast<std::ptrdiff_t>(slot) * head_dim);
  }
  return rows;
}

std::int64_t block_of_token_zero(std::span<const std::int32_t> order, int block) {
  return (std::find(order.begin(), order.end(), 0) - order.begin()) / block;
}

}  // namespace s2o
