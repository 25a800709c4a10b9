// The kernels that plan S2O, on the CPU model of a grid, against the CPU planner.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <iostream>
#include <limits>
#include <vector>

#include "lib/testing/inputs.h"
#include "lib/testing/model_planning.h"
#include "lib/testing/s2o_orders.h"

namespace s2o {
namespace {

using testing::OrderComparison;
using testing::S2oCase;
using testing::Shape;
using testing::structured_input;

struct Orders : testing::S2oOrders {
  std::uint32_t bad_row = 0;
};

Orders orders_on_model(const AttentionInput& input, const S2oCase& settings, std::uint64_t seed = 1,
                       PlanningVariant variant = PlanningVariant::kSm80) {
  const auto planner = settings.planner(input.problem);
  testing::ModelPlan result = testing::plan_on_model(*planner, input, seed, variant);
  check_plan(input.problem, result.plan);
  return {{input.problem, settings, result.plan}, result.error_word};
}

constexpr PlanningVariant kVariants[] = {PlanningVariant::kSm80, PlanningVariant::kSm90};

// Compares every row with the exact order of the CPU's scores.
void expect_reference_order(const AttentionInput& input, const S2oCase& settings,
                            const Orders& plan) {
  EXPECT_EQ(plan.bad_row, 0u);
  const OrderComparison total = testing::compare_orders_with_cpu(input, settings, plan);
  EXPECT_TRUE(total.is_permutation);
  EXPECT_EQ(total.beyond, 0);
  std::cout << "slots " << total.slots << ", near-ties " << total.moved << "\n";
}

TEST(S2oPlanningModel, orders_agree_with_the_cpu_planner_up_to_near_ties) {
  for (const StorageDType dtype : {StorageDType::kBF16, StorageDType::kF16}) {
    for (const Shape& shape : {Shape{700, 4, 2, 64}, Shape{650, 6, 1, 128}}) {
      const AttentionInput input = structured_input(shape, "mixed", dtype);
      for (const bool shared : {false, true}) {
        const S2oCase settings{.segment_size = 128, .share_key_order_in_group = shared};
        for (const PlanningVariant variant : kVariants) {
          expect_reference_order(input, settings, orders_on_model(input, settings, 1, variant));
        }
      }
    }
  }
}

TEST(S2oPlanningModel, small_batches_and_depth_limits_keep_the_order) {
  const AttentionInput input =
      structured_input(Shape{1153, 2, 1, 128}, "stripes", StorageDType::kF16);
  S2oCase settings{.segment_size = 128, .local_window = 100};
  const Orders full = orders_on_model(input, settings);
  expect_reference_order(input, settings, full);
  settings.score_bytes = 1;  // one tile of rows at a time
  EXPECT_EQ(orders_on_model(input, settings, 7).order, full.order);
  for (const PlanningVariant variant : kVariants) {
    EXPECT_EQ(orders_on_model(input, settings, 3, variant).order, full.order);
  }
}

// What sums up the orders of all rows, whatever batches they were planned in.
std::vector<std::vector<std::int32_t>> rows_of(const Orders& plan) {
  std::vector<std::vector<std::int32_t>> rows;
  for (int list = 0; list < plan.shape.num_lists(); ++list) {
    for (int segment = 0; segment < plan.shape.num_segments; ++segment) {
      const auto row = plan.row(list, segment);
      rows.emplace_back(row.begin(), row.end());
    }
  }
  return rows;
}

TEST(S2oPlanningModel, orders_of_classes_do_not_depend_on_batches_and_threads) {
  const AttentionInput input = structured_input(Shape{2300, 4, 2, 64});
  // Rows end inside blocks of stored classes.
  S2oCase settings{.segment_size = 128, .local_window = 100, .max_depth = 200};
  const Orders plan = orders_on_model(input, settings);
  ASSERT_TRUE(plan.layout.has_classes);
  settings.score_bytes = 1;  // one tile of rows at a time
  EXPECT_EQ(rows_of(orders_on_model(input, settings, 7)), rows_of(plan));
  EXPECT_EQ(rows_of(orders_on_model(input, settings, 3)), rows_of(plan));
}

// More keys pass the cut than the pool of a block holds.
TEST(S2oPlanningModel, equal_scores_beyond_the_pool_are_the_first_tokens) {
  AttentionInput input = structured_input(Shape{20500, 1, 1, 64});
  for (std::size_t i = 0; i < input.k.size(); ++i) input.k[i] = 1.0f;
  const S2oCase settings{.segment_size = 10240, .max_depth = 704};
  const Orders plan = orders_on_model(input, settings);
  ASSERT_TRUE(plan.layout.has_classes);
  for (int segment = 1; segment < plan.shape.num_segments; ++segment) {
    const auto row = plan.row(0, segment);
    ASSERT_EQ(row.size(), 704u);
    std::vector<std::int32_t> tokens(row.begin(), row.end());
    std::ranges::sort(tokens);  // 64 tokens have an order of their own
    for (std::size_t i = 0; i < tokens.size(); ++i) ASSERT_EQ(tokens[i], static_cast<int>(i));
  }
}

TEST(S2oPlanningModel, orders_with_less_room_hold_the_best_keys) {
  const AttentionInput input = structured_input(Shape{2300, 4, 2, 64});
  for (const std::int64_t segment_size : {128, 256}) {
    const S2oCase settings{.segment_size = segment_size,
                           .share_key_order_in_group = segment_size == 256,
                           .local_window = 100,
                           .max_depth = 200};
    for (const PlanningVariant variant : kVariants) {
      const Orders plan = orders_on_model(input, settings, 1, variant);
      expect_reference_order(input, settings, plan);
      for (const std::int32_t count : plan.counts) EXPECT_LE(count, 200);
      EXPECT_GE(plan.counts.back(), 130);
    }
  }
}

// Tokens that each tile gathers, in order.
std::vector<std::vector<std::int32_t>> gathered(const PlanPass& pass) {
  std::vector<std::vector<std::int32_t>> tokens(pass.item_offsets.size() - 1);
  for (std::size_t tile = 0; tile < tokens.size(); ++tile) {
    for (std::int64_t i = pass.item_offsets[tile]; i < pass.item_offsets[tile + 1]; ++i) {
      const PlanItem& item = pass.items[static_cast<std::size_t>(i)];
      if (item.kind != ItemKind::kGather) continue;
      const auto first = pass.gather_indices.begin() + item.begin;
      tokens[tile].insert(tokens[tile].end(), first, first + item.count);
    }
  }
  return tokens;
}

TEST(S2oPlanningModel, batches_that_share_memory_have_the_orders_of_one) {
  const AttentionInput input = structured_input(Shape{1153, 4, 2, 64});
  const S2oCase all_settings[] = {
      {.segment_size = 128},
      {.segment_size = 128, .share_key_order_in_group = true, .max_depth = 300},
      {.segment_size = 256, .query_guide = QueryGuide::kPrefixMeanKey, .local_window = 100}};
  for (S2oCase settings : all_settings) {
    const auto whole = settings.planner(input.problem);
    ASSERT_EQ(whole->num_batches(), 1);
    const SparsePlan expected = testing::plan_on_model(*whole, input).plan;
    settings.order_bytes_per_token = 3;
    const auto batched = settings.planner(input.problem);
    EXPECT_GT(batched->num_batches(), 2);
    EXPECT_LT(batched->workspace().bytes(), whole->workspace().bytes());
    const SparsePlan plan = testing::plan_on_model(*batched, input, 3).plan;
    check_plan(input.problem, plan);
    ASSERT_EQ(plan.passes.size(), expected.passes.size());
    for (std::size_t p = 0; p < plan.passes.size(); ++p) {
      EXPECT_EQ(plan.passes[p].item_offsets, expected.passes[p].item_offsets);
      EXPECT_EQ(plan.passes[p].query_order, expected.passes[p].query_order);
      EXPECT_EQ(gathered(plan.passes[p]), gathered(expected.passes[p]));
    }
  }
}

// Sizes only: nothing is allocated.
TEST(S2oPlanningModel, workspace_is_linear_in_the_sequence_from_32k_to_1m_tokens) {
  const S2oCase kinds[] = {{},
                           {.share_key_order_in_group = true, .max_depth = 4096},
                           {.query_guide = QueryGuide::kPrefixMeanKey,
                            .local_window = 128,
                            .fold = {.kind = Compensation::kBlocksVariance}}};
  for (std::int64_t seqlen = 32768; seqlen <= 1048576; seqlen *= 2) {
    for (const std::int64_t segment_size : {64, 128, 1024, 4096}) {
      for (S2oCase settings : kinds) {
        settings.segment_size = segment_size;
        settings.block_m = segment_size < 128 ? 64 : 128;
        const Problem problem{.seqlen = seqlen,
                              .num_q_heads = 4,
                              .num_kv_heads = 1,
                              .head_dim = 128,
                              .softmax_scale = 0.1f};
        const auto planner = settings.planner(problem, 50 << 20);
        EXPECT_LE(planner->workspace().bytes(), kS2oBytesPerToken * seqlen * problem.num_q_heads)
            << "seqlen " << seqlen << " segment " << segment_size;
        // Tiles of a batch are those of its segments.
        const HistoryShape shape = s2o_history_shape(problem, settings.settings());
        const S2oLayout layout(shape, settings.limits());
        ASSERT_EQ(planner->num_batches(), static_cast<int>(layout.batches.size()));
        EXPECT_EQ(layout.batches.back().end_segment * segment_size, seqlen);
      }
    }
  }
}

// Sizes only, as above: one batch of 64 heads has more entries than 32 bits can count.
TEST(S2oPlanningModel, items_beyond_2_31_entries_lie_in_their_lists) {
  const Problem problem{.seqlen = 1048576,
                        .num_q_heads = 64,
                        .num_kv_heads = 8,
                        .head_dim = 128,
                        .softmax_scale = 0.1f};
  const S2oCase settings{.segment_size = 1024};
  const HistoryShape shape = s2o_history_shape(problem, settings.settings());
  const S2oLayout layout(shape, settings.limits());
  const PlanSkeleton skeleton = s2o_plan_skeleton(problem, settings.settings(), shape, layout);
  const PassSkeleton& pass = skeleton.passes[0];
  const int tiles_per_segment = 1024 / skeleton.header.block_m;
  std::int64_t largest_end = 0;
  for (std::int64_t tile = 0; tile + 1 < std::ssize(pass.item_offsets); ++tile) {
    const std::int64_t list = tile / skeleton.header.num_q_tiles;
    const std::int64_t segment = tile % skeleton.header.num_q_tiles / tiles_per_segment;
    for (std::int64_t i = pass.item_offsets[tile]; i < pass.item_offsets[tile + 1]; ++i) {
      const PlanItem& item = pass.items[static_cast<std::size_t>(i)];
      if (item.kind != ItemKind::kGather) continue;
      ASSERT_EQ(item.count, segment * 1024);
      ASSERT_EQ(item.begin, list * layout.order_per_list +
                                layout.order_offsets[static_cast<std::size_t>(segment)])
          << "list " << list << " segment " << segment;
      ASSERT_LE(item.begin + item.count, (list + 1) * layout.order_per_list);
      largest_end = std::max(largest_end, item.begin + item.count);
    }
  }
  EXPECT_GT(largest_end, 1ll << 31);
}

TEST(S2oPlanningModel, histories_of_several_tiles_keep_the_order) {
  const AttentionInput input = structured_input(Shape{20500, 1, 1, 64}, "heavy_tail");
  const S2oCase settings{.segment_size = 10240};
  const Orders plan = orders_on_model(input, settings);
  expect_reference_order(input, settings, plan);
  EXPECT_EQ(orders_on_model(input, settings, 5).order, plan.order);
}

TEST(S2oPlanningModel, tiles_of_keys_that_reach_beyond_the_sequence_keep_the_order) {
  for (const int head_dim : {64, 128}) {
    const AttentionInput input = structured_input(Shape{100, 4, 2, head_dim});
    const S2oCase settings{.segment_size = 96, .block_m = 32};
    expect_reference_order(input, settings, orders_on_model(input, settings));
  }
}

TEST(S2oPlanningModel, equal_scores_keep_the_order_of_tokens) {
  AttentionInput input = structured_input(Shape{520, 2, 1, 64});
  for (std::size_t i = 0; i < input.k.size(); ++i) input.k[i] = 1.0f;
  const S2oCase settings{.segment_size = 256};
  for (const PlanningVariant variant : kVariants) {
    const Orders plan = orders_on_model(input, settings, 1, variant);
    for (int list = 0; list < 2; ++list) {
      for (int segment = 0; segment < plan.shape.num_segments; ++segment) {
        const auto row = plan.row(list, segment);
        for (std::size_t i = 0; i < row.size(); ++i) ASSERT_EQ(row[i], static_cast<int>(i));
      }
    }
  }
}

TEST(S2oPlanningModel, scores_that_are_not_finite_name_their_row) {
  AttentionInput input = structured_input(Shape{520, 2, 1, 64});
  input.k[5 * 64 + 3] = std::numeric_limits<float>::infinity();
  const Orders plan = orders_on_model(input, {.segment_size = 128});
  EXPECT_EQ(~plan.bad_row, 1u);  // list 0, segment 1: the first with a history
  EXPECT_EQ(~orders_on_model(input, {.segment_size = 128}, 1, PlanningVariant::kSm90).bad_row, 1u);
}

TEST(S2oPlanningModel, plans_have_the_items_of_the_cpu_planner) {
  const AttentionInput input = structured_input(Shape{900, 4, 2, 64});
  const Method& method = find_method("s2o_plus");
  const DenseReference none;
  for (const char* sharing : {"query_head", "kv_head"}) {
    const ParamSet params = testing::settings_of(method, {{"ranking", "mean"},
                                                          {"segment_size", 256},
                                                          {"local_window", 100},
                                                          {"key_order_sharing", sharing}});
    const SparsePlan expected = method.plan_cpu({.input = input, .reference = none}, params);
    const S2oCase settings{.segment_size = 256,
                           .share_key_order_in_group = sharing == std::string("kv_head"),
                           .local_window = 100,
                           .fold = expected.header.fold};
    const auto planner = settings.planner(input.problem);
    const SparsePlan plan = testing::plan_on_model(*planner, input).plan;
    EXPECT_EQ(plan.passes[0].item_offsets, expected.passes[0].item_offsets);
    EXPECT_EQ(plan.passes[0].fold_end, expected.passes[0].fold_end);
    const auto difference = testing::compare_plans(input.problem, plan, expected);
    EXPECT_EQ(difference.differing_tiles, 0);
    EXPECT_GT(difference.keys, 0);
  }
}

// Queries by descending product with the guide: a sort in fp64 up to rounding.
TEST(S2oPlanningModel, guided_queries_have_the_order_of_the_cpu_planner_up_to_near_ties) {
  const Method& method = find_method("s2o_plus");
  const DenseReference none;
  for (const char* guide : {"prefix_mean_key", "global_mean_key", "segment_mean_query"}) {
    const AttentionInput input = structured_input(Shape{900, 4, 2, 64});
    const ParamSet params = testing::settings_of(
        method, {{"ranking", "mean"}, {"query_guide", guide}, {"segment_size", 256}});
    const SparsePlan expected = method.plan_cpu({.input = input, .reference = none}, params);
    const auto planner = method.device_planner({.problem = input.problem,
                                                .dtype = input.dtype,
                                                .params = params,
                                                .limits = {.l2_bytes = 1 << 20}});
    ASSERT_NE(planner, nullptr);
    const testing::ModelPlan model = testing::plan_on_model(*planner, input);
    EXPECT_EQ(model.error_word, 0u);
    check_plan(input.problem, model.plan);
    ASSERT_EQ(model.plan.passes.size(), expected.passes.size());
    for (std::size_t pass = 0; pass < expected.passes.size(); ++pass) {
      EXPECT_EQ(model.plan.passes[pass].item_offsets, expected.passes[pass].item_offsets);
      EXPECT_EQ(model.plan.passes[pass].fold_end, expected.passes[pass].fold_end);
    }
    EXPECT_EQ(testing::compare_plans(input.problem, model.plan, expected).differing_tiles, 0);
    const auto& order = model.plan.passes[1].query_order;
    const auto& reference = expected.passes[1].query_order;
    ASSERT_EQ(order.size(), reference.size());
    std::int64_t moved = 0;
    for (std::size_t i = 0; i < order.size(); ++i) moved += order[i] != reference[i] ? 1 : 0;
    std::cout << guide << ": " << moved << " of " << order.size() << " slots differ\n";
    EXPECT_LE(moved, static_cast<std::int64_t>(order.size()) / 100);
  }
}

TEST(S2oPlanningModel, one_segment_has_nothing_to_rank) {
  const AttentionInput input = structured_input(Shape{100, 2, 1, 64});
  const Orders plan = orders_on_model(input, {.segment_size = 1024});
  EXPECT_TRUE(plan.order.empty());
}

}  // namespace
}  // namespace s2o
