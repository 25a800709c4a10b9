#include "lib/testing/s2o_orders.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <numeric>
#include <utility>

#include "kernels/common/parallel.h"
#include "kernels/planning/s2o/ops.h"
#include "kernels/planning/s2o/row_ops.h"

namespace s2o::testing {
namespace {

std::vector<std::int32_t> exact_order(const std::vector<float>& scores) {
  std::vector<std::int32_t> order(scores.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](std::int32_t a, std::int32_t b) {
    return scores[static_cast<std::size_t>(a)] > scores[static_cast<std::size_t>(b)];
  });
  return order;
}

}  // namespace

S2oSettings S2oCase::settings() const {
  return {.segment_size = segment_size,
          .block_m = block_m,
          .block_n = 128,
          .query_guide = query_guide,
          .share_key_order_in_group = share_key_order_in_group,
          .stop = stop,
          .ranking = Ranking::kMean,
          .local_window = local_window,
          .fold = fold,
          .natural_pass1 = query_guide != QueryGuide::kNone,
          .max_depth = max_depth};
}

S2oOrders::S2oOrders(const Problem& problem, const S2oCase& settings, const SparsePlan& plan)
    : order(plan.passes.back().gather_indices),
      layout(s2o_history_shape(problem, settings.settings()), settings.limits()),
      shape(s2o_history_shape(problem, settings.settings())) {
  const PlanPass& pass = plan.passes.back();
  const int heads = problem.num_q_heads / shape.num_lists();
  for (int list = 0; list < shape.num_lists(); ++list) {
    for (int segment = 0; segment < shape.num_segments; ++segment) {
      const auto tile = static_cast<int>(segment * settings.segment_size / settings.block_m);
      const auto end =
          pass.item_offsets[static_cast<std::size_t>(plan.tile_index(list * heads, tile) + 1)];
      const bool is_ranked = shape.history_length(segment) > 0;
      counts.push_back(is_ranked ? pass.items[static_cast<std::size_t>(end - 1)].count : 0);
    }
  }
}

std::span<const std::int32_t> S2oOrders::row(int list, std::int64_t segment) const {
  return {order.data() + list * layout.order_per_list +
              layout.order_offsets[static_cast<std::size_t>(segment)],
          static_cast<std::size_t>(
              counts[static_cast<std::size_t>(list * shape.num_segments + segment)])};
}

namespace {

// What the order of a row tells apart: MeanCutArgs, where it is that of classes.
OrderTolerance tolerance_of(const std::vector<float>& scores,
                            const std::vector<std::int32_t>& reference, const HistoryShape& shape,
                            int list, std::int64_t segment) {
  float largest = 0.0f;
  for (const float score : scores) largest = std::max(largest, std::abs(score));
  // 16-bit means (8 bits of mantissa at least), fp16 scores.
  OrderTolerance tolerance{.score_error = 0.01 + 0.01 * static_cast<double>(largest)};
  if (!has_listed_orders(shape)) return tolerance;
  tolerance.has_steps = true;
  tolerance.highest = -1e30;
  tolerance.lowest = 1e30;
  const auto row =
      static_cast<int>(segment * shape.lists_per_kv_head + list % shape.lists_per_kv_head);
  const std::int64_t stride = cut_sample_stride(shape, row);
  for (std::int64_t i = 0; i < kCutSamples; ++i) {
    const std::int64_t key = sampled_key(i, stride);
    if (key >= std::ssize(scores)) continue;
    const auto score = static_cast<double>(scores[static_cast<std::size_t>(key)]);
    tolerance.highest = std::max(tolerance.highest, score);
    tolerance.lowest = std::min(tolerance.lowest, score);
  }
  if (shape.order_length(segment) < std::ssize(scores)) {
    // The cut is that of the sample: not far below that of all scores.
    const auto below = static_cast<std::size_t>(
        std::min<std::int64_t>(shape.order_length(segment) * 3 / 2, std::ssize(scores) - 1));
    tolerance.lowest = std::min(
        tolerance.highest, static_cast<double>(scores[static_cast<std::size_t>(reference[below])]));
  }
  return tolerance;
}

}  // namespace

OrderComparison compare_orders_with_cpu(const AttentionInput& input, const S2oCase& settings,
                                        const S2oOrders& plan,
                                        std::span<const std::int64_t> segments) {
  const int group = input.problem.num_q_heads / plan.shape.num_lists();
  std::vector<std::int64_t> compared(segments.begin(), segments.end());
  if (compared.empty()) {
    compared.resize(static_cast<std::size_t>(plan.shape.num_segments));
    std::iota(compared.begin(), compared.end(), 0);
  }
  const auto num_lists = static_cast<std::int64_t>(plan.shape.num_lists());
  std::vector<OrderComparison> rows(compared.size() * static_cast<std::size_t>(num_lists));
  parallel_for(static_cast<std::int64_t>(rows.size()), [&](std::int64_t task) {
    const auto list = static_cast<int>(task % num_lists);
    const std::int64_t segment = compared[static_cast<std::size_t>(task / num_lists)];
    const std::int64_t length = plan.shape.history_length(segment);
    if (length == 0) return;
    const std::int64_t begin = segment * settings.segment_size;
    const std::int64_t end = std::min(begin + settings.segment_size, input.problem.seqlen);
    const auto scores = mean_query_scores(input, list * group, group, begin, end, length);
    const std::vector<std::int32_t> reference = exact_order(scores);
    rows[static_cast<std::size_t>(task)] =
        compare_orders(scores, plan.row(list, segment), reference,
                       tolerance_of(scores, reference, plan.shape, list, segment));
  });
  OrderComparison total;
  for (std::size_t i = 0; i < rows.size(); ++i) {
    const OrderComparison& row = rows[i];
    if (!row.is_permutation || row.beyond > 0) {
      std::fprintf(stderr, "list %lld segment %lld: %s, %lld slots beyond near-ties, excess %g\n",
                   static_cast<long long>(static_cast<std::int64_t>(i) % num_lists),
                   static_cast<long long>(compared[i / static_cast<std::size_t>(num_lists)]),
                   row.is_permutation ? "permutation" : "no permutation",
                   static_cast<long long>(row.beyond), row.largest_excess);
    }
    total.slots += row.slots;
    total.moved += row.moved;
    total.beyond += row.beyond;
    total.largest_excess = std::max(total.largest_excess, row.largest_excess);
    total.is_permutation = total.is_permutation && row.is_permutation;
  }
  return total;
}

}  // namespace s2o::testing
