#include <gtest/gtest.h>

#include "kernels/common/error.h"
#include "lib/plan/work.h"
#include "lib/testing/inputs.h"

namespace s2o {
namespace {

Problem problem_of(std::int64_t seqlen, int q_heads = 1, int kv_heads = 1) {
  return {.seqlen = seqlen, .num_q_heads = q_heads, .num_kv_heads = kv_heads, .head_dim = 64};
}

SparsePlan one_tile_plan(const Problem& problem, const std::vector<PlanItem>& items) {
  SparsePlan plan(problem, 128, 128);
  PlanBuilder builder(plan);
  for (const PlanItem& item : items) builder.add(0, plan.header.num_q_tiles - 1, item);
  builder.finish(plan.passes[0]);
  return plan;
}

std::string check_message(const Problem& problem, const SparsePlan& plan) {
  try {
    check_plan(problem, plan);
  } catch (const Error& error) {
    return error.what();
  }
  return "";
}

TEST(CheckPlan, finds_every_broken_invariant) {
  const Problem problem = problem_of(256);
  EXPECT_EQ(check_message(problem, one_tile_plan(problem, {{.count = 128}})), "");
  EXPECT_NE(check_message(problem, one_tile_plan(problem, {{.count = 130}}))
                .find("unmasked key 129 is after query 128"),
            std::string::npos);
  EXPECT_NE(
      check_message(problem, one_tile_plan(problem, {{.count = 64}, {.begin = 63, .count = 2}}))
          .find("key 63 is visited twice"),
      std::string::npos);
  EXPECT_NE(check_message(
                problem,
                one_tile_plan(problem, {{.begin = 200, .count = 100, .mask = MaskClass::kCausal}}))
                .find("outside [0, 256)"),
            std::string::npos);
  EXPECT_NE(check_message(problem, one_tile_plan(problem, {{.count = 0}})).find("outside"),
            std::string::npos);

  SparsePlan gather = one_tile_plan(problem, {{.count = 2, .kind = ItemKind::kGather}});
  gather.passes[0].gather_indices = {5, 300};
  EXPECT_NE(check_message(problem, gather).find("key 300 lies outside"), std::string::npos);

  SparsePlan order = one_tile_plan(problem, {{.count = 1}});
  order.passes[0].query_order.assign(256, 0);
  EXPECT_NE(check_message(problem, order).find("no permutation"), std::string::npos);

  SparsePlan fold = one_tile_plan(problem, {{.count = 1}});
  fold.passes[0].fold_end = {0, 129};
  EXPECT_NE(check_message(problem, fold).find("fold end 129"), std::string::npos);
}

// Hand-counted: 300 tokens, tiles of 128 rows and 128 keys, dense.
TEST(Work, dense_plan_has_density_one_on_ragged_lengths) {
  for (const std::int64_t seqlen : {1, 127, 128, 129, 300}) {
    const AttentionInput input = testing::structured_input({seqlen, 2, 1, 64});
    DenseReference none;
    const SparsePlan plan =
        find_method("dense").plan_cpu({.input = input, .reference = none}, ParamSet());
    const Work work = count_work(input.problem, plan, testing::execute(input, plan).stats);
    EXPECT_EQ(work.total.executed_pairs, work.total.dense_pairs);
    EXPECT_EQ(work.total.visited_pairs, work.total.causal_pairs);
    if (seqlen == 300) {
      // 128 rows x 128 keys, 128 x 256, 44 x 384, twice (two heads).
      EXPECT_EQ(work.total.dense_pairs, 2 * (128 * 128 + 128 * 256 + 44 * 384));
      EXPECT_EQ(work.total.causal_pairs, 2 * 300 * 301 / 2);
    }
  }
}

TEST(Work, partial_steps_masks_stops_and_folds_are_counted_as_defined) {
  const Problem problem = problem_of(256);
  SparsePlan plan = one_tile_plan(
      problem, {{.begin = 100, .count = 1},  // a whole step
                {.begin = 128, .count = 128, .mask = MaskClass::kCausal},
                {.begin = 0, .count = 3, .kind = ItemKind::kGather, .stoppable = true}});
  plan.passes[0].gather_indices = {1, 2, 3};
  std::vector<TileStats> stats(2);
  stats[1] = {.stop_steps = 0, .total_steps = 2, .fold_columns = 3};
  Work work = count_work(problem, plan, stats);
  EXPECT_EQ(work.total.dense_pairs, 128 * 128 + 128 * 256);
  EXPECT_EQ(work.total.executed_pairs, 128 * (2 * 128 + kFoldColumnTile));
  EXPECT_EQ(work.total.folded_pairs, 128 * kFoldColumnTile);
  EXPECT_EQ(work.total.visited_pairs, 128 + 128 * 129 / 2);
  stats[1].stop_steps = 1;
  work = count_work(problem, plan, stats);
  EXPECT_EQ(work.total.visited_pairs, 128 + 128 * 129 / 2 + 3 * 128);
}

TEST(Work, window_mask_counts_visible_pairs_as_the_predicate) {
  const AttentionInput input = testing::structured_input({700, 1, 1, 64});
  DenseReference none;
  const Method& method = find_method("streaming_llm");
  for (const auto& [sink, window] : {std::pair(1, 2), std::pair(130, 200), std::pair(0, 1)}) {
    const SparsePlan plan =
        method.plan_cpu({.input = input, .reference = none},
                        testing::settings_of(method, {{"sink", sink}, {"window", window}}));
    check_plan(input.problem, plan);
    const Work work = count_work(input.problem, plan, testing::execute(input, plan).stats);
    std::int64_t expected = 0;
    for (std::int64_t t = 0; t < 700; ++t) {
      for (std::int64_t x = 0; x <= t; ++x) expected += x < sink || t - x < window;
    }
    EXPECT_EQ(work.total.visited_pairs, expected) << sink << " " << window;
  }
}

TEST(Work, packed_rows_are_counted_at_their_query_head) {
  const Problem problem = problem_of(64, 4, 1);
  SparsePlan plan(problem, 128, 128, /*pack=*/4);
  ASSERT_EQ(plan.header.num_q_tiles, 2);
  PlanBuilder builder(plan);
  builder.add(0, 0, {.count = 32, .mask = MaskClass::kCausal});
  builder.finish(plan.passes[0]);
  const Work work = count_work(problem, plan, std::vector<TileStats>(2));
  for (const WorkCounts& head : work.per_head) {
    EXPECT_EQ(head.executed_pairs, 32 * 128);
    EXPECT_EQ(head.visited_pairs, 32 * 33 / 2);
    EXPECT_EQ(head.dense_pairs, 64 * 128);
  }
}

TEST(AddKeyBlocks, merges_neighbours_and_drops_the_future) {
  const Problem problem = problem_of(600);
  SparsePlan plan(problem, 128, 128);
  PlanBuilder builder(plan);
  const std::vector<std::uint8_t> selected = {1, 1, 0, 1, 1};
  add_key_blocks(problem, plan, builder, 0, 3, selected.data(), 128);
  builder.finish(plan.passes[0]);
  const auto& items = plan.passes[0].items;
  ASSERT_EQ(items.size(), 2u);
  EXPECT_EQ(items[0].begin, 0);
  EXPECT_EQ(items[0].count, 256);
  EXPECT_EQ(items[0].mask, MaskClass::kNone);
  EXPECT_EQ(items[1].begin, 384);
  EXPECT_EQ(items[1].count, 128);
  EXPECT_EQ(items[1].mask, MaskClass::kCausal);
}

}  // namespace
}  // namespace s2o
