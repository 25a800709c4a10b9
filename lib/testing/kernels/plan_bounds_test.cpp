#include "kernels/common/plan_bounds.h"

#include <gtest/gtest.h>

#include <functional>

#include "kernels/common/error.h"
#include "lib/testing/plan_cases.h"

namespace s2o {
namespace {

using testing::PlanCase;
using testing::PlanKind;

// What the check says about a plan after `spoil`; "" if nothing.
std::string verdict(PlanKind kind, const std::function<void(SparsePlan&)>& spoil) {
  const PlanCase plan_case{kind, {600, 4, 2, 64}, 64, 64};
  const AttentionInput input = testing::structured_input(plan_case.shape);
  SparsePlan plan = testing::make_plan(plan_case, input, 1);
  spoil(plan);
  try {
    check_plan_bounds(input.problem, PlanPointers(plan).view());
  } catch (const Error& error) {
    return error.what();
  }
  return "";
}

TEST(PlanBounds, valid_plans_pass) {
  for (const PlanKind kind : testing::all_plan_kinds()) {
    EXPECT_EQ(verdict(kind, [](SparsePlan&) {}), "") << testing::plan_kind_name(kind);
  }
}

TEST(PlanBounds, gathered_key_is_named_by_head_tile_and_place) {
  EXPECT_EQ(verdict(PlanKind::kS2o,
                    [](SparsePlan& plan) { plan.passes[0].gather_indices.front() = 600; }),
            "plan pass 0 head 0 tile 2: key 600 at place 0 of item 1 is outside [0, 600)");
  EXPECT_EQ(verdict(PlanKind::kS2oTwoPasses,
                    [](SparsePlan& plan) {
                      PlanPass& pass = plan.passes[1];
                      const auto items = pass.item_offsets[static_cast<std::size_t>(
                          plan.tile_index(/*plan_head=*/3, /*tile=*/9))];
                      const PlanItem& item = pass.items[static_cast<std::size_t>(items)];
                      pass.gather_indices[static_cast<std::size_t>(item.begin + 5)] = -2;
                    }),
            "plan pass 1 head 3 tile 9: key -2 at place 5 of item 0 is outside [0, 600)");
}

TEST(PlanBounds, tau_of_a_head_is_at_most_that_of_the_plan_and_zero_only_without_stops) {
  const auto with = [](std::vector<float> taus) {
    return verdict(PlanKind::kS2o,
                   [&](SparsePlan& plan) { plan.passes[0].head_taus = std::move(taus); });
  };
  EXPECT_EQ(with({0.08f, 0.01f, 0.08f, 0.02f}), "");
  EXPECT_EQ(with({0.08f, 0.25f, 0.08f, 0.02f}),
            "plan pass 0 head 1: tau 0.250000 is outside [0, 0.080000], the tau of the plan");
  EXPECT_EQ(with({0.08f, 0.01f, 0.0f, 0.02f}), "plan pass 0 head 2: stoppable items with tau 0");
}

TEST(PlanBounds, runs_orders_and_fold_ends_stay_inside) {
  EXPECT_EQ(
      verdict(PlanKind::kDense, [](SparsePlan& plan) { plan.passes[0].items[3].count = 601; }),
      "plan pass 0 head 0 tile 3: item 0 is [0, +601), outside [0, 600)");
  EXPECT_EQ(verdict(PlanKind::kDense, [](SparsePlan& plan) { plan.passes[0].items[3].count = 0; }),
            "plan pass 0 head 0 tile 3: item 0 is [0, +0), outside [0, 600)");
  EXPECT_EQ(
      verdict(PlanKind::kKeyOrder, [](SparsePlan& plan) { plan.passes[0].key_order[607] = 900; }),
      "plan pass 0 head 1: key order slot 7 is 900, outside [0, 600)");
  EXPECT_EQ(
      verdict(PlanKind::kS2o, [](SparsePlan& plan) { plan.passes[0].query_order[1200] = -1; }),
      "plan pass 0 head 2: query order slot 0 is -1, outside [0, 600)");
  EXPECT_EQ(
      verdict(PlanKind::kFoldBlocks, [](SparsePlan& plan) { plan.passes[0].fold_end[11] = 601; }),
      "plan pass 0 head 1 tile 1: fold end 601 is outside [0, 600]");
  EXPECT_EQ(verdict(PlanKind::kDense, [](SparsePlan& plan) { plan.header.num_q_tiles = 9; }),
            "plan: 9 tiles a head, expected 10");
}

}  // namespace
}  // namespace s2o
