// The kernels that plan S2O, on the CPU model of a grid, against the CPU planner.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <vector>

#include "kernels/planning/s2o_layout.h"
#include "kernels/testing/order_compare.h"
#include "lib/methods/common/key_ranking.h"
#include "lib/testing/inputs.h"
#include "lib/testing/model_planning.h"

namespace s2o {
namespace {

using testing::OrderComparison;
using testing::Shape;
using testing::structured_input;

struct Orders {
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

Orders orders_on_model(const AttentionInput& input, const S2oDeviceSettings& settings,
                       std::uint64_t seed = 1) {
  const HistoryShape shape = s2o_history_shape(input.problem, settings);
  const auto planner = make_s2o_planner(input.problem, settings, 1 << 20);
  testing::ModelPlan result = testing::plan_on_model(*planner, input, seed);
  check_plan(input.problem, result.plan);
  return {.order = result.plan.passes[0].gather_indices,
          .bad_row = result.error_word,
          .layout = S2oLayout(shape, settings.score_bytes),
          .shape = shape};
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
                            const Orders& plan) {
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
      const OrderComparison row =
          testing::compare_orders(scores, plan.row(list, segment), exact_order(scores),
                                  {.score_error = 0.01 + 0.01 * largest});
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
      const S2oDeviceSettings settings{
          .segment_size = 128, .share_key_order_in_group = shared, .diagonal_ranking = diagonal};
      expect_reference_order(input, settings, orders_on_model(input, settings));
    }
  }
}

TEST(S2oPlanningModel, small_batches_and_depth_limits_keep_the_order) {
  const AttentionInput input =
      structured_input(Shape{1153, 2, 1, 128}, "stripes", StorageDType::kF16);
  S2oDeviceSettings settings{.segment_size = 128, .local_window = 100};
  const Orders full = orders_on_model(input, settings);
  expect_reference_order(input, settings, full);
  settings.score_bytes = 1;  // one tile of rows at a time
  EXPECT_EQ(orders_on_model(input, settings, 7).order, full.order);
  settings.max_depth = 200;
  expect_reference_order(input, settings, orders_on_model(input, settings));
}

TEST(S2oPlanningModel, histories_of_several_tiles_keep_the_order) {
  const AttentionInput input = structured_input(Shape{20500, 1, 1, 64}, "heavy_tail");
  const S2oDeviceSettings settings{.segment_size = 10240};
  const Orders plan = orders_on_model(input, settings);
  expect_reference_order(input, settings, plan);
  EXPECT_EQ(orders_on_model(input, settings, 5).order, plan.order);
}

TEST(S2oPlanningModel, equal_scores_keep_the_order_of_tokens) {
  AttentionInput input = structured_input(Shape{520, 2, 1, 64});
  for (std::size_t i = 0; i < input.k.size(); ++i) input.k[i] = 1.0f;
  const S2oDeviceSettings settings{.segment_size = 256};
  const Orders plan = orders_on_model(input, settings);
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
  const Orders plan = orders_on_model(input, {.segment_size = 128});
  EXPECT_EQ(~plan.bad_row, 1u);  // list 0, segment 1: the first with a history
}

TEST(S2oPlanningModel, plans_have_the_items_of_the_cpu_planner) {
  const AttentionInput input = structured_input(Shape{900, 4, 2, 64});
  const Method& method = find_method("s2o_plus");
  const DenseReference none;
  for (const char* sharing : {"query_head", "kv_head"}) {
    const ParamSet params = testing::settings_of(method, {{"ranking", "mean"},
                                                          {"normalizer_aware", false},
                                                          {"value_aware", false},
                                                          {"segment_size", 256},
                                                          {"local_window", 100},
                                                          {"key_order_sharing", sharing}});
    const SparsePlan expected = method.plan_cpu({.input = input, .reference = none}, params);
    const S2oDeviceSettings settings{.segment_size = 256,
                                     .share_key_order_in_group = sharing == std::string("kv_head"),
                                     .local_window = 100,
                                     .fold = expected.header.fold};
    const auto planner = make_s2o_planner(input.problem, settings, 1 << 20);
    const SparsePlan plan = testing::plan_on_model(*planner, input).plan;
    EXPECT_EQ(plan.passes[0].item_offsets, expected.passes[0].item_offsets);
    EXPECT_EQ(plan.passes[0].fold_end, expected.passes[0].fold_end);
    const auto difference = testing::compare_plans(input.problem, plan, expected);
    EXPECT_EQ(difference.differing_tiles, 0);
    EXPECT_GT(difference.keys, 0);
  }
}

TEST(S2oPlanningModel, one_segment_has_nothing_to_rank) {
  const AttentionInput input = structured_input(Shape{100, 2, 1, 64});
  const Orders plan = orders_on_model(input, {.segment_size = 1024});
  EXPECT_TRUE(plan.order.empty());
}

}  // namespace
}  // namespace s2o
