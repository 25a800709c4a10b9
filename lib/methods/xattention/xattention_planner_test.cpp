// The planner of XAttention on the CPU model of a GPU: what the agreement of every method
// (agreement_test.cpp) does not reach, above all rows of later chunks, which begin at 8,192 tokens
// or more.
#include <gtest/gtest.h>

#include <limits>

#include "lib/methods/xattention/xattention.h"
#include "lib/testing/agreement.h"
#include "lib/testing/model_planning.h"

namespace s2o {
namespace {

using testing::Shape;
using testing::structured_input;

constexpr PlanningVariant kVariants[] = {PlanningVariant::kSm80, PlanningVariant::kSm90};

void expect_near(const AttentionInput& input, const XAttentionSettings& settings,
                 const PlannerLimits& limits = {.l2_bytes = 1 << 20}) {
  const SparsePlan expected = plan_xattention(input, settings, Rounder(input.dtype));
  for (const PlanningVariant variant : kVariants) {
    const auto planner = xattention_planner(input.problem, settings, limits);
    const testing::ModelPlan model = testing::plan_on_model(*planner, input, 1, variant);
    EXPECT_EQ(model.error_word, 0u);
    check_plan(input.problem, model.plan);
    EXPECT_EQ(model.plan.passes[0].fold_end, expected.passes[0].fold_end);
    const testing::PlanDifference d = testing::compare_plans(input.problem, model.plan, expected);
    EXPECT_LE(static_cast<double>(d.extra_keys + d.missing_keys),
              find_method("xattention").info().device.tie_share * static_cast<double>(d.keys));
  }
}

TEST(XAttentionPlanner, rows_of_both_rules_agree_with_the_cpu) {
  for (const Shape& shape : {Shape{2100, 4, 2, 64}, Shape{1090, 2, 1, 128}}) {
    const AttentionInput input = structured_input(shape);
    for (const int stride : {4, 8, 16}) {
      for (const double threshold : {0.5, 0.9, 1.0}) {
        if (stride != 8 && threshold != 0.9) continue;
        expect_near(
            input,
            {.block = 128, .stride = stride, .threshold = threshold, .chunk = 1024, .fold = {}});
      }
    }
  }
}

TEST(XAttentionPlanner, small_strips_agree_with_the_cpu) {
  const AttentionInput input =
      structured_input(Shape{2500, 2, 1, 64}, "stripes", StorageDType::kF16);
  expect_near(input,
              {.block = 64,
               .stride = 8,
               .threshold = 0.9,
               .chunk = 512,
               .fold = {.rule = {.kind = Compensation::kBlocks, .fold_block = 64}}},
              {.l2_bytes = 1 << 20, .scratch_bytes = 1});
}

TEST(XAttentionPlanner, strips_of_several_batches_agree_with_the_cpu) {
  const AttentionInput input = structured_input({5300, 2, 1, 64});
  expect_near(input, {.block = 128, .stride = 8, .threshold = 0.9, .chunk = 2048, .fold = {}},
              {.l2_bytes = 1 << 20, .list_bytes_per_token = 0});
}

TEST(XAttentionPlanner, masses_that_are_not_finite_name_their_row) {
  AttentionInput input = structured_input(Shape{600, 2, 1, 64});
  input.q[static_cast<std::size_t>((600 + 300) * 64)] = std::numeric_limits<float>::quiet_NaN();
  for (const PlanningVariant variant : kVariants) {
    const auto planner = testing::planner_of(find_method("xattention"), input, {});
    const std::uint32_t bad = testing::plan_on_model(*planner, input, 1, variant).error_word;
    EXPECT_EQ(planner->row_name(static_cast<std::int64_t>(~bad)), "query head 1, query tile 2");
  }
}

}  // namespace
}  // namespace s2o
