// The kernels that plan S2O, on the CPU model of a grid, against the CPU planner.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <vector>

#include "kernels/planning/key_scores.cuh"
#include "kernels/planning/mean_queries.cuh"
#include "kernels/planning/rank_history.cuh"
#include "kernels/planning/s2o_layout.h"
#include "kernels/testing/model_runner.h"
#include "kernels/testing/order_compare.h"
#include "kernels/testing/simt.h"
#include "lib/methods/common/key_ranking.h"
#include "lib/testing/inputs.h"

namespace s2o {
namespace {

using device::Bf16;
using device::Fp16;
using testing::OrderComparison;
using testing::Shape;
using testing::structured_input;

struct ModelPlan {
  std::vector<std::int32_t> order;
  std::uint32_t bad_row = 0;
  S2oLayout layout;
  HistoryShape shape;

  std::span<const std::int32_t> row(int list, int segment) const {
    const auto s = static_cast<std::size_t>(segment);
    return {order.data() + list * layout.order_per_list() + layout.order_offsets[s],
            static_cast<std::size_t>(shape.order_length(segment))};
  }
};

template <class Element, int kHeadDim>
ModelPlan plan_on_model(const AttentionInput& input, const S2oDeviceSettings& settings,
                        std::uint64_t seed = 1) {
  const Problem& problem = input.problem;
  const HistoryShape shape = s2o_history_shape(problem, settings);
  ModelPlan plan{.layout = S2oLayout(shape, settings.score_bytes), .shape = shape};
  const KernelDType dtype = Element::kIsBf16 ? KernelDType::kBf16 : KernelDType::kFp16;
  const auto q = testing::to_16_bit(input.q, dtype);
  const auto k = testing::to_16_bit(input.k, dtype);
  const auto rows = static_cast<std::size_t>(shape.num_lists() * shape.num_segments);
  std::vector<std::uint16_t> means(rows * kHeadDim, 0xffff);
  std::vector<std::uint16_t> variances(rows * kHeadDim, 0xffff);
  std::vector<std::uint16_t> scores(static_cast<std::size_t>(plan.layout.score_entries), 0xffff);
  std::vector<ScoreRange> ranges(rows, ScoreRange{0, 0});
  plan.order.assign(static_cast<std::size_t>(plan.layout.order_per_list() * shape.num_lists()), -1);

  const MeanQueryArgs mean_args{.q = q.data(),
                                .means = means.data(),
                                .variances = settings.diagonal_ranking ? variances.data() : nullptr,
                                .shape = shape,
                                .heads_per_list = problem.num_q_heads / shape.num_lists(),
                                .softmax_scale = problem.softmax_scale};
  simt::launch({.num_blocks = static_cast<int>(rows),
                .num_threads = device::kMeanThreads,
                .shared_bytes = sizeof(device::SharedMeans<kHeadDim>),
                .seed = seed},
               [&] { device::MeanQueries<Element, kHeadDim>(mean_args).run(); });
  for (const ScoreBatch& batch : plan.layout.batches) {
    const KeyScoreArgs args{.means = means.data(),
                            .variances = mean_args.variances,
                            .k = k.data(),
                            .scores = scores.data(),
                            .ranges = ranges.data(),
                            .bad_row = &plan.bad_row,
                            .score_offsets = plan.layout.score_offsets.data(),
                            .scores_per_list = batch.scores_per_list,
                            .first_offset = batch.first_offset,
                            .shape = shape,
                            .first_kv_head = batch.first_kv_head,
                            .num_batch_kv_heads = batch.num_kv_heads,
                            .first_segment = batch.first_segment,
                            .end_segment = batch.end_segment,
                            .num_row_tiles = batch.num_row_tiles(shape),
                            .num_key_chunks = batch.num_key_chunks(shape)};
    const auto run = [&]<bool kDiagonal>() {
      simt::launch(
          {.num_blocks = args.num_batch_kv_heads * args.num_row_tiles * args.num_key_chunks,
           .num_threads = device::kScoreThreads,
           .shared_bytes = sizeof(device::SharedScores<kHeadDim, kDiagonal>),
           .seed = seed},
          [&] { device::KeyScores<Element, kHeadDim, kDiagonal>(args).run(); });
    };
    if (args.num_key_chunks > 0) {
      settings.diagonal_ranking ? run.template operator()<true>()
                                : run.template operator()<false>();
    }
    const RankArgs rank{.scores = scores.data(),
                        .ranges = ranges.data(),
                        .score_offsets = plan.layout.score_offsets.data(),
                        .scores_per_list = batch.scores_per_list,
                        .first_offset = batch.first_offset,
                        .order = plan.order.data(),
                        .order_offsets = plan.layout.order_offsets.data(),
                        .order_per_list = plan.layout.order_per_list(),
                        .shape = shape,
                        .sharp_depth = settings.sharp_depth,
                        .first_list = batch.first_kv_head * shape.lists_per_kv_head,
                        .num_batch_lists = batch.num_kv_heads * shape.lists_per_kv_head,
                        .first_segment = batch.first_segment,
                        .end_segment = batch.end_segment};
    simt::launch({.num_blocks = rank.num_batch_lists * (rank.end_segment - rank.first_segment),
                  .num_threads = device::kRankThreads,
                  .shared_bytes = sizeof(device::SharedRank),
                  .seed = seed},
                 [&] { device::RankHistory(rank).run(); });
  }
  return plan;
}

std::vector<std::int32_t> exact_order(const std::vector<float>& scores) {
  std::vector<std::int32_t> order(scores.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](std::int32_t a, std::int32_t b) {
    return scores[static_cast<std::size_t>(a)] > scores[static_cast<std::size_t>(b)];
  });
  return order;
}

// Compares every row with the exact order of the CPU's scores.
void expect_reference_order(const AttentionInput& input, const S2oDeviceSettings& settings,
                            const ModelPlan& plan) {
  EXPECT_EQ(plan.bad_row, 0u);
  const KeyRanking ranking(
      input, {.form = settings.diagonal_ranking ? Ranking::kDiagonal : Ranking::kMean});
  const int group = input.problem.num_q_heads / plan.shape.num_lists();
  OrderComparison total;
  for (int list = 0; list < plan.shape.num_lists(); ++list) {
    for (int segment = 0; segment < plan.shape.num_segments; ++segment) {
      const std::int64_t length = plan.shape.history_length(segment);
      if (length == 0) continue;
      const std::int64_t begin = segment * settings.segment_size;
      const std::int64_t end = std::min(begin + settings.segment_size, input.problem.seqlen);
      const auto scores = ranking.scores(list * group, group, begin, end, length);
      float largest = 0.0f;
      for (const float score : scores) largest = std::max(largest, std::abs(score));
      // 16-bit means and squares (8 bits of mantissa at least), fp16 scores.
      const OrderComparison row = testing::compare_orders(
          scores, plan.row(list, segment), exact_order(scores),
          {.sharp_depth = settings.sharp_depth, .score_error = 0.01 + 0.01 * largest});
      ASSERT_TRUE(row.is_permutation) << "list " << list << " segment " << segment;
      EXPECT_EQ(row.beyond, 0) << "list " << list << " segment " << segment << " excess "
                               << row.largest_excess;
      total.slots += row.slots;
      total.moved += row.moved;
    }
  }
  std::cout << "slots " << total.slots << ", near-ties " << total.moved << "\n";
}

TEST(S2oPlanningModel, orders_agree_with_the_cpu_planner_up_to_near_ties) {
  const AttentionInput input = structured_input(Shape{700, 4, 2, 64});
  for (const bool shared : {false, true}) {
    for (const bool diagonal : {false, true}) {
      const S2oDeviceSettings settings{.segment_size = 128,
                                       .share_key_order_in_group = shared,
                                       .diagonal_ranking = diagonal,
                                       .sharp_depth = 256};
      expect_reference_order(input, settings, plan_on_model<Bf16, 64>(input, settings));
    }
  }
}

TEST(S2oPlanningModel, small_batches_and_depth_limits_keep_the_order) {
  const AttentionInput input =
      structured_input(Shape{1153, 2, 1, 128}, "stripes", StorageDType::kF16);
  S2oDeviceSettings settings{.segment_size = 128, .local_window = 100, .sharp_depth = 128};
  const ModelPlan full = plan_on_model<Fp16, 128>(input, settings);
  expect_reference_order(input, settings, full);
  settings.score_bytes = 1;  // one tile of rows at a time
  EXPECT_EQ((plan_on_model<Fp16, 128>(input, settings, 7).order), full.order);
  settings.max_depth = 200;
  expect_reference_order(input, settings, plan_on_model<Fp16, 128>(input, settings));
}

TEST(S2oPlanningModel, equal_scores_keep_the_order_of_tokens) {
  AttentionInput input = structured_input(Shape{520, 2, 1, 64});
  for (std::size_t i = 0; i < input.k.size(); ++i) input.k[i] = 1.0f;
  const S2oDeviceSettings settings{.segment_size = 256};
  const ModelPlan plan = plan_on_model<Bf16, 64>(input, settings);
  for (int list = 0; list < 2; ++list) {
    for (int segment = 0; segment < plan.shape.num_segments; ++segment) {
      const auto row = plan.row(list, segment);
      for (std::size_t i = 0; i < row.size(); ++i) ASSERT_EQ(row[i], static_cast<int>(i));
    }
  }
}

TEST(S2oPlanningModel, scores_that_are_not_finite_name_their_row) {
  AttentionInput input = structured_input(Shape{520, 2, 1, 64});
  input.k[5 * 64 + 3] = std::numeric_limits<float>::infinity();
  const ModelPlan plan = plan_on_model<Bf16, 64>(input, {.segment_size = 128});
  EXPECT_EQ(~plan.bad_row, 1u);  // list 0, segment 1: the first with a history
}

TEST(S2oPlanningModel, one_segment_has_nothing_to_rank) {
  const AttentionInput input = structured_input(Shape{100, 2, 1, 64});
  const ModelPlan plan = plan_on_model<Bf16, 64>(input, {.segment_size = 1024});
  EXPECT_TRUE(plan.order.empty());
}

}  // namespace
}  // namespace s2o
