// The kernels of the ranking by rows, on the CPU model of a GPU, against their definition.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <limits>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "lib/methods/s2o/row_planner.h"
#include "lib/methods/s2o/row_ranking.h"
#include "lib/testing/inputs.h"
#include "lib/testing/model_planning.h"

namespace s2o {
namespace {

using testing::Shape;
using testing::structured_input;

RowRankingSettings ranking_above(float floor, float local_limit = 0.0f) {
  return {.local_window = 128,
          .sink = 64,
          .floor = floor,
          .probe_stride = 3,
          .local_limit = local_limit};
}

std::unique_ptr<Planner> planner_of(const AttentionInput& input,
                                    const RowRankingSettings& settings) {
  return make_row_planner(
      input.problem,
      {.ranking = settings, .block_n = 128, .kept_fraction = 4, .stop = {.tau = 0.01f}},
      {.l2_bytes = 1 << 20});
}

testing::ModelPlan plan_rows(const AttentionInput& input, const RowRankingSettings& settings,
                             std::uint64_t seed = 1) {
  const auto planner = planner_of(input, settings);
  testing::ModelPlan result = testing::plan_on_model(*planner, input, seed, PlanningVariant::kSm90);
  if (result.error_word == 0) check_plan(input.problem, result.plan);
  return result;
}

// Keys that a tile gathers.
std::vector<std::int32_t> gathered(const SparsePlan& plan, int head, int tile) {
  const PlanPass& pass = plan.passes[0];
  std::vector<std::int32_t> keys;
  const auto id = static_cast<std::size_t>(plan.tile_index(head, tile));
  for (std::int64_t i = pass.item_offsets[id]; i < pass.item_offsets[id + 1]; ++i) {
    const PlanItem& item = pass.items[static_cast<std::size_t>(i)];
    if (item.kind != ItemKind::kGather) continue;
    const auto begin = pass.gather_indices.begin() + item.begin;
    keys.insert(keys.end(), begin, begin + item.count);
  }
  return keys;
}

struct Agreement {
  std::int64_t keys = 0, moved = 0, lists = 0, local = 0;
};
// Weights are rounded often on the way: a key may be one class beside the definition's, and keys of
// the lowest class may come or go.
Agreement expect_agreement(const AttentionInput& input, const RowRankingSettings& settings,
                           const SparsePlan& plan) {
  const RowRanking ranking(input, settings);
  Agreement total;
  for (int head = 0; head < input.problem.num_q_heads; ++head) {
    for (int tile = 0; tile < plan.header.num_q_tiles; ++tile) {
      const std::int64_t history = ranking.history_length(tile);
      const std::vector<std::int32_t> keys = gathered(plan, head, tile);
      const std::string where = "head " + std::to_string(head) + ", tile " + std::to_string(tile);
      if (history == 0 || ranking.is_local(head, tile)) {
        std::vector<std::int32_t> sink(
            static_cast<std::size_t>(std::min<std::int64_t>(settings.sink, history)));
        for (std::size_t i = 0; i < sink.size(); ++i) sink[i] = static_cast<std::int32_t>(i);
        EXPECT_EQ(keys, sink) << where;
        ++total.local;
        continue;
      }
      const std::vector<float> weights = ranking.weights(head, tile);
      const std::vector<std::int32_t> reference = ranking.order(head, tile, history);
      std::vector<bool> seen(static_cast<std::size_t>(history));
      int lowest = kRowClasses;
      for (std::size_t i = 0; i < keys.size(); ++i) {
        const std::int32_t key = keys[i];
        if (key < 0 || key >= history || seen[static_cast<std::size_t>(key)]) {
          ADD_FAILURE() << where << ": key " << key << " of " << history << " at " << i;
          return total;
        }
        seen[static_cast<std::size_t>(key)] = true;
        const int c = ranking.class_of(weights[static_cast<std::size_t>(key)], key);
        EXPECT_LE(c, lowest + 2) << where << ", key " << key;
        lowest = std::min(lowest, c);
        total.moved += i >= reference.size() || reference[i] != key ? 1 : 0;
      }
      for (std::int32_t key = 0; key < history; ++key) {
        if (seen[static_cast<std::size_t>(key)]) continue;
        EXPECT_LE(ranking.class_of(weights[static_cast<std::size_t>(key)], key), 1)
            << where << ", key " << key;
      }
      total.keys += static_cast<std::int64_t>(keys.size());
      ++total.lists;
    }
  }
  return total;
}

TEST(S2oRowsModel, lists_agree_with_the_definition) {
  for (const StorageDType dtype : {StorageDType::kBF16, StorageDType::kF16}) {
    for (const Shape& shape : {Shape{1100, 2, 1, 64}, Shape{700, 5, 1, 128}, Shape{500, 3, 3, 64},
                               Shape{129, 7, 1, 64}, Shape{257, 2, 1, 128}, Shape{385, 1, 1, 64}}) {
      const AttentionInput input = structured_input(shape, "mixed", dtype);
      const RowRankingSettings settings = ranking_above(1e-3f, 1.5f);
      const testing::ModelPlan result = plan_rows(input, settings);
      EXPECT_EQ(result.error_word, 0u);
      const Agreement total = expect_agreement(input, settings, result.plan);
      std::cout << "lists " << total.lists << ", local tiles " << total.local << ", keys "
                << total.keys << ", moved " << total.moved << "\n";
      EXPECT_LE(total.moved, total.keys / 8);
    }
  }
}

TEST(S2oRowsModel, lists_do_not_depend_on_the_order_of_threads_or_batches) {
  const AttentionInput input = structured_input(Shape{900, 3, 1, 64}, "stripes");
  const RowRankingSettings settings = ranking_above(1e-4f, 0.3f);
  const testing::ModelPlan plan = plan_rows(input, settings);
  const testing::ModelPlan again = plan_rows(input, settings, 9);
  for (int head = 0; head < 3; ++head) {
    for (int tile = 0; tile < plan.plan.header.num_q_tiles; ++tile) {
      EXPECT_EQ(gathered(plan.plan, head, tile), gathered(again.plan, head, tile));
    }
  }
}

TEST(S2oRowsModel, equal_scores_keep_the_order_of_tokens) {
  AttentionInput input = structured_input(Shape{1000, 2, 1, 64});
  std::fill(input.q.begin(), input.q.end(), 0.0f);
  const testing::ModelPlan result = plan_rows(input, ranking_above(1e-6f));
  for (int tile = 2; tile < result.plan.header.num_q_tiles; ++tile) {
    const std::vector<std::int32_t> keys = gathered(result.plan, 0, tile);
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
    const auto planner = planner_of(input, ranking_above(1e-3f));
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
  EXPECT_TRUE(gathered(result.plan, 1, 5).empty());
  const PlanPass& pass = result.plan.passes[0];
  const PlanItem& last = pass.items[static_cast<std::size_t>(pass.item_offsets[6] - 1)];
  EXPECT_EQ(last.count, 512);
}

}  // namespace
}  // namespace s2o
