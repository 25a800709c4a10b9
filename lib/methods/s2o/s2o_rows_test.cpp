// The kernels of the ranking by rows, on the CPU model of a GPU, against their definition.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <limits>
#include <string>
#include <vector>

#include "lib/methods/s2o/row_ranking.h"
#include "lib/testing/inputs.h"
#include "lib/testing/model_planning.h"
#include "lib/testing/row_lists.h"

namespace s2o {
namespace {

using testing::expect_row_agreement;
using testing::gathered_keys;
using testing::ranking_above;
using testing::row_planner_of;
using testing::RowAgreement;
using testing::Shape;
using testing::structured_input;

testing::ModelPlan plan_rows(const AttentionInput& input, const RowRankingSettings& settings,
                             std::uint64_t seed = 1) {
  const auto planner = row_planner_of(input, settings);
  testing::ModelPlan result = testing::plan_on_model(*planner, input, seed, PlanningVariant::kSm90);
  if (result.error_word == 0) check_plan(input.problem, result.plan);
  return result;
}

TEST(S2oRowsModel, lists_agree_with_the_definition) {
  for (const StorageDType dtype : {StorageDType::kBF16, StorageDType::kF16}) {
    for (const Shape& shape : {Shape{1100, 2, 1, 64}, Shape{700, 5, 1, 128}, Shape{500, 3, 3, 64},
                               Shape{129, 7, 1, 64}, Shape{257, 2, 1, 128}, Shape{385, 1, 1, 64}}) {
      const AttentionInput input = structured_input(shape, "mixed", dtype);
      const RowRankingSettings settings = ranking_above(1e-3f);
      const testing::ModelPlan result = plan_rows(input, settings);
      EXPECT_EQ(result.error_word, 0u);
      const RowAgreement total = expect_row_agreement(input, settings, result.plan);
      std::cout << "lists " << total.lists << ", keys " << total.keys << ", others " << total.others
                << "\n";
      EXPECT_LE(total.others, total.keys / 32);
      EXPECT_GE(total.weight, 0.999 * total.expected_weight);
    }
  }
}

TEST(S2oRowsModel, lists_of_heads_that_do_not_read_far_agree_with_the_definition) {
  const AttentionInput input = testing::input_of_many_reaches(5100, StorageDType::kBF16);
  const RowRankingSettings settings = testing::probing_ranking();
  const RowRanking ranking(input, settings);
  EXPECT_GE(ranking.reach(0), 1200);
  EXPECT_LE(ranking.reach(0), 2000);
  EXPECT_EQ(ranking.reach(1), kNothingFar);
  EXPECT_EQ(ranking.reach(2), 0);
  EXPECT_GE(ranking.reach(3), 3000);
  const testing::ModelPlan result = plan_rows(input, settings);
  EXPECT_EQ(result.error_word, 0u);
  const RowAgreement total = expect_row_agreement(input, settings, result.plan);
  EXPECT_LE(total.others, total.keys / 32);
  EXPECT_GE(total.weight, 0.999 * total.expected_weight);
  EXPECT_GT(total.sinks, 0);
  EXPECT_GT(total.skipped, 0);
}

// Probes of a KV head are weighed together.
TEST(S2oRowsModel, probes_of_groups_of_any_size_agree_with_the_definition) {
  struct Case {
    int num_kv_heads, group_size, num_probes;
  };
  for (const Case& c : {Case{3, 1, 3}, Case{2, 3, 4}, Case{1, 9, 3}}) {
    SCOPED_TRACE("group size " + std::to_string(c.group_size));
    const AttentionInput input =
        testing::input_of_many_reaches(3000, StorageDType::kBF16, c.num_kv_heads, c.group_size);
    RowRankingSettings settings = testing::probing_ranking();
    settings.num_probes = c.num_probes;
    const testing::ModelPlan result = plan_rows(input, settings);
    EXPECT_EQ(result.error_word, 0u);
    const RowAgreement total = expect_row_agreement(input, settings, result.plan);
    EXPECT_LE(total.others, total.keys / 32);
    EXPECT_GT(total.sinks, 0);
    EXPECT_GT(total.skipped, 0);
  }
}

// Heads with settings of their own in one plan, on a device and by definition, against plans in
// which all heads have those of one.
TEST(S2oRowsModel, heads_with_a_tau_each_have_the_lists_of_plans_with_one) {
  const AttentionInput input = testing::input_of_many_reaches(5100, StorageDType::kBF16);
  const std::vector<float> taus = {0.1f, 0.0001f, 0.003f, 0.001f, 0.0f};
  RowRankingSettings all = testing::probing_ranking();
  for (const float tau : taus) {
    all.heads.push_back(
        {.floor = tau / 16.0f, .least_mass = tau / 128.0f, .reach_limit = 4.0f * tau});
  }
  const auto plan_of = [&](const RowRankingSettings& ranking, float tau,
                           const std::vector<float>& head_taus, std::int64_t list_bytes) {
    const auto planner =
        make_row_planner(input.problem,
                         {.ranking = ranking,
                          .block_n = 128,
                          .kept_fraction = rows_kept_fraction(tau),
                          .stop = {.tau = tau},
                          .head_taus = head_taus},
                         {.l2_bytes = 1 << 20, .list_bytes_per_token = list_bytes});
    const testing::ModelPlan result =
        testing::plan_on_model(*planner, input, 1, PlanningVariant::kSm90);
    EXPECT_EQ(result.error_word, 0u);
    check_plan(input.problem, result.plan);
    return result.plan;
  };
  const RowRanking defined(input, all);
  const SparsePlan whole = plan_of(all, 0.1f, taus, kListBytesPerToken);
  const SparsePlan in_batches = plan_of(all, 0.1f, taus, 16);
  EXPECT_EQ(whole.passes[0].head_taus, taus);
  EXPECT_EQ(whole.header.stop.tau, 0.1f);
  for (int head = 0; head < 5; ++head) {
    SCOPED_TRACE("head " + std::to_string(head));
    RowRankingSettings one = all;
    const RowLimits own = all.of(head);
    one.heads.clear();
    one.floor = own.floor;
    one.least_mass = own.least_mass;
    one.reach_limit = own.reach_limit;
    const float tau = taus[static_cast<std::size_t>(head)];
    const SparsePlan alone = plan_of(one, tau, {}, kListBytesPerToken);
    const RowRanking defined_alone(input, one);
    EXPECT_EQ(defined.reach(head), defined_alone.reach(head));
    for (int tile = 0; tile < alone.header.num_q_tiles; ++tile) {
      EXPECT_EQ(gathered_keys(whole, head, tile), gathered_keys(alone, head, tile));
      EXPECT_EQ(gathered_keys(in_batches, head, tile), gathered_keys(alone, head, tile));
      if (tile % 8 != 7) continue;
      EXPECT_EQ(defined.order(head, tile, 5100), defined_alone.order(head, tile, 5100));
    }
  }
  // Without a floor: the history in place.
  const PlanPass& pass = whole.passes[0];
  for (const int tile : {1, 2, 20, 39}) {
    const auto end = static_cast<std::size_t>(whole.tile_index(4, tile) + 1);
    const PlanItem& last = pass.items[static_cast<std::size_t>(pass.item_offsets[end] - 1)];
    if (tile < 2) continue;
    EXPECT_EQ(last.kind, ItemKind::kRun);
    EXPECT_FALSE(last.stoppable);
    EXPECT_EQ(last.count, (tile - 1) * 128);
  }
}

TEST(S2oRowsModel, lists_do_not_depend_on_the_order_of_threads_or_batches) {
  const AttentionInput input = structured_input(Shape{900, 3, 1, 64}, "stripes");
  RowRankingSettings settings = ranking_above(1e-4f);
  settings.num_probes = 3;
  settings.least_mass = 1e-4f;
  settings.reach_limit = 0.3f;
  const testing::ModelPlan plan = plan_rows(input, settings);
  const testing::ModelPlan again = plan_rows(input, settings, 9);
  for (int head = 0; head < 3; ++head) {
    for (int tile = 0; tile < plan.plan.header.num_q_tiles; ++tile) {
      EXPECT_EQ(gathered_keys(plan.plan, head, tile), gathered_keys(again.plan, head, tile));
    }
  }
}

TEST(S2oRowsModel, equal_scores_keep_the_order_of_tokens) {
  AttentionInput input = structured_input(Shape{1000, 2, 1, 64});
  std::fill(input.q.begin(), input.q.end(), 0.0f);
  const testing::ModelPlan result = plan_rows(input, ranking_above(1e-6f));
  for (int tile = 2; tile < result.plan.header.num_q_tiles; ++tile) {
    const std::vector<std::int32_t> keys = gathered_keys(result.plan, 0, tile);
    EXPECT_EQ(keys.size(), static_cast<std::size_t>(128 * (tile - 1)));
    EXPECT_TRUE(std::is_sorted(keys.begin(), keys.end()));
  }
}

TEST(S2oRowsModel, numbers_that_are_not_finite_name_head_and_segment) {
  for (const bool in_key : {false, true}) {
    AttentionInput input = structured_input(Shape{600, 4, 2, 64});
    // Token 300 of query head 3; of KV head 1, whose first query head is 2.
    auto& x = in_key ? input.k : input.q;
    x[static_cast<std::size_t>(((in_key ? 1 : 3) * 600 + 300) * 64 + 5)] =
        in_key ? std::numeric_limits<float>::quiet_NaN() : std::numeric_limits<float>::infinity();
    const auto planner = row_planner_of(input, ranking_above(1e-3f));
    const testing::ModelPlan result =
        testing::plan_on_model(*planner, input, 1, PlanningVariant::kSm90);
    ASSERT_NE(result.error_word, 0u);
    EXPECT_EQ(planner->row_name(~result.error_word),
              in_key ? "query head 2, segment 2" : "query head 3, segment 2");
  }
}

TEST(S2oRowsModel, no_floor_visits_everything) {
  const AttentionInput input = structured_input(Shape{700, 2, 1, 64});
  const testing::ModelPlan result = plan_rows(input, ranking_above(0.0f));
  EXPECT_TRUE(gathered_keys(result.plan, 1, 5).empty());
  const PlanPass& pass = result.plan.passes[0];
  const PlanItem& last = pass.items[static_cast<std::size_t>(pass.item_offsets[6] - 1)];
  EXPECT_EQ(last.count, 512);
}

}  // namespace
}  // namespace s2o
