// Planners of methods that estimate from the last queries, on the CPU model of a grid, against
// plan_cpu. Masses follow sums in another order: entries at a cut may differ, near-ties, counted.
#include <gtest/gtest.h>

#include <iostream>
#include <limits>

#include "kernels/planning/minference_planner.h"
#include "lib/testing/inputs.h"
#include "lib/testing/model_planning.h"

namespace s2o {
namespace {

using nlohmann::ordered_json;
using testing::PlanDifference;
using testing::Shape;
using testing::structured_input;

std::unique_ptr<Planner> planner_of(const char* name, const AttentionInput& input,
                                    const ordered_json& params) {
  const ParamSet settings = testing::settings_of(find_method(name), params);
  return find_method(name).device_planner(
      {.problem = input.problem, .dtype = input.dtype, .params = settings, .l2_bytes = 1 << 20});
}

// At most `share` of the keys may differ.
void expect_near(const char* name, const AttentionInput& input, const ordered_json& params,
                 double share) {
  const auto planner = planner_of(name, input, params);
  ASSERT_NE(planner, nullptr);
  const testing::ModelPlan model = testing::plan_on_model(*planner, input);
  EXPECT_EQ(model.error_word, 0u);
  check_plan(input.problem, model.plan);
  const Method& method = find_method(name);
  const DenseReference none;
  const SparsePlan expected =
      method.plan_cpu({.input = input, .reference = none}, testing::settings_of(method, params));
  EXPECT_EQ(model.plan.passes[0].fold_end, expected.passes[0].fold_end);
  const PlanDifference d = testing::compare_plans(input.problem, model.plan, expected);
  std::cout << name << " seqlen " << input.problem.seqlen << ": " << d.tiles << " tiles, "
            << d.differing_tiles << " with near-ties; " << d.keys << " keys, " << d.extra_keys
            << " more, " << d.missing_keys << " fewer\n";
  EXPECT_LE(static_cast<double>(d.extra_keys + d.missing_keys),
            share * static_cast<double>(d.keys));
  if (d.differing_tiles == 0) {
    EXPECT_EQ(model.plan.passes[0].item_offsets, expected.passes[0].item_offsets);
  }
}

TEST(VerticalSlashModel, minference_gives_the_cpu_plan) {
  for (const Shape& shape : {Shape{1700, 4, 2, 64}, Shape{1090, 2, 1, 128}, Shape{130, 2, 1, 64},
                             Shape{40, 1, 1, 64}, Shape{1, 1, 1, 64}}) {
    const AttentionInput input = structured_input(shape, "stripes");
    expect_near("minference", input, {{"vertical_size", 60}, {"slash_size", 150}}, 0.01);
    expect_near("minference", input, {{"vertical_size", 200}, {"slash_size", 300}, {"last_q", 128}},
                0.01);
    expect_near("minference", input, {{"vertical_size", 30}, {"slash_size", 60}, {"last_q", 1}},
                0.01);
  }
}

TEST(VerticalSlashModel, minference_in_fp16_gives_the_cpu_plan) {
  const AttentionInput input = structured_input({1500, 2, 1, 64}, "mixed", StorageDType::kF16);
  expect_near("minference", input, {{"vertical_size", 100}, {"slash_size", 120}}, 0.01);
}

TEST(VerticalSlashModel, minference_in_batches_has_the_items_and_columns_of_one) {
  const AttentionInput input = structured_input({1700, 4, 2, 64}, "stripes");
  MinferenceDeviceSettings settings{.num_columns = 60, .num_distances = 150};
  const auto whole = make_minference_planner(input.problem, settings, 1 << 20);
  ASSERT_EQ(whole->num_batches(), 1);
  settings.room.bytes_per_token = 0;
  const auto batched = make_minference_planner(input.problem, settings, 1 << 20);
  EXPECT_GT(batched->num_batches(), 2);
  const SparsePlan expected = testing::plan_on_model(*whole, input).plan;
  const SparsePlan plan = testing::plan_on_model(*batched, input, 3).plan;
  check_plan(input.problem, plan);
  EXPECT_EQ(plan.passes[0].item_offsets, expected.passes[0].item_offsets);
  EXPECT_EQ(testing::compare_plans(input.problem, plan, expected).differing_tiles, 0);
}

TEST(VerticalSlashModel, flexprefill_gives_the_cpu_plan) {
  for (const Shape& shape : {Shape{1300, 4, 2, 64}, Shape{640, 2, 1, 128}, Shape{200, 2, 1, 64}}) {
    for (const char* pattern : {"stripes", "mixed"}) {
      const AttentionInput input = structured_input(shape, pattern);
      // No head, some heads or all heads are query aware.
      for (const double tau : {0.0, 0.1, 1.0}) {
        for (const double gamma : {0.6, 0.95}) {
          expect_near("flexprefill", input, {{"tau", tau}, {"gamma", gamma}, {"min_budget", 200}},
                      0.01);
        }
      }
    }
  }
}

TEST(VerticalSlashModel, flexprefill_of_smaller_blocks_gives_the_cpu_plan) {
  const AttentionInput input = structured_input({1500, 2, 1, 64}, "mixed", StorageDType::kF16);
  expect_near("flexprefill", input,
              {{"block_size", 64}, {"min_budget", 1}, {"tau", 0.5}, {"compensation", "blocks"}},
              0.01);
}

TEST(VerticalSlashModel, logits_that_are_not_finite_name_their_head) {
  AttentionInput input = structured_input({600, 2, 1, 64});
  input.q[static_cast<std::size_t>((600 + 590) * 64)] = std::numeric_limits<float>::quiet_NaN();
  const auto planner = planner_of("minference", input, {});
  const std::uint32_t bad = testing::plan_on_model(*planner, input).error_word;
  EXPECT_EQ(planner->row_name(static_cast<std::int64_t>(~bad)), "query head 1, query tile 0");
}

}  // namespace
}  // namespace s2o
