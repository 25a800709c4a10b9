// Folded columns on the CPU model: after the portable kernel, on every kind of fold.
#include <gtest/gtest.h>

#include <utility>
#include <vector>

#include "lib/testing/model_runner.h"

namespace s2o {
namespace {

using testing::Comparison;
using testing::KernelResult;
using testing::PlanCase;
using testing::PlanKind;

KernelResult run(const AttentionInput& input, const SparsePlan& plan, std::uint64_t seed) {
  return testing::run_on_model(AttentionKernel::kSm80, input, plan, false, seed);
}

void expect_matches_reference(const AttentionInput& input, const SparsePlan& plan,
                              std::uint64_t seed) {
  check_plan(input.problem, plan);
  const KernelResult expected = testing::reference_result(input, plan);
  const Comparison c = testing::compare(input, run(input, plan, seed), expected);
  // Mean keys, mean values and variances are rounded to 8 bits of mantissa like P.
  EXPECT_LE(c.out_relative_l2, 8e-3) << c.worst;
  EXPECT_LE(c.lse_max_error, 5e-3);
  EXPECT_EQ(c.empty_mismatches, 0);
  EXPECT_EQ(c.stat_mismatches, 0);
}

class FoldModel : public ::testing::TestWithParam<PlanCase> {};

TEST_P(FoldModel, matches_reference) {
  const AttentionInput input = testing::structured_input(GetParam().shape);
  expect_matches_reference(input, testing::make_plan(GetParam(), input, 3), 1);
}

std::vector<PlanCase> cases() {
  std::vector<PlanCase> list;
  for (const PlanKind kind :
       {PlanKind::kFoldCentroid, PlanKind::kFoldBlocks, PlanKind::kFoldVariance}) {
    list.push_back({kind, {300, 4, 2, 64}, 64, 64});
    list.push_back({kind, {333, 2, 1, 64}, 128, 128});
    list.push_back({kind, {200, 1, 1, 128}, 64, 64});
  }
  list.push_back({PlanKind::kFoldVariance, {500, 1, 1, 128}, 128, 128});  // the shape that matters
  list.push_back({PlanKind::kFoldVariance, {3000, 1, 1, 64}, 128, 128});  // two chunks of columns
  return list;
}

INSTANTIATE_TEST_SUITE_P(cases, FoldModel, ::testing::ValuesIn(cases()),
                         [](const auto& test) { return testing::plan_case_name(test.param); });

// A folded column for every key is exact, so the result is dense attention.
TEST(FoldModelExact, blocks_of_one_key_equal_dense) {
  const AttentionInput input = testing::structured_input({200, 2, 1, 64});
  SparsePlan plan = testing::make_plan({PlanKind::kFoldBlocks, {200, 2, 1, 64}, 64, 64}, input, 3);
  plan.header.fold.fold_block = 1;
  plan.header.fold.round_bf16 = false;
  const DenseReference dense = testing::naive_dense(input);
  const KernelResult result = run(input, plan, 2);
  EXPECT_LE(testing::relative_l2(result.out, dense.out), 4e-3);
}

// A dimension in which all keys are large and alike: its squares exceed fp16, its variance is what
// is left of large sums.
TEST(FoldModelExact, large_mean_of_fp16_keys_matches_reference) {
  const PlanCase plan_case{PlanKind::kFoldVariance, {333, 2, 1, 64}, 128, 128};
  AttentionInput input = testing::structured_input(plan_case.shape, "mixed", StorageDType::kF16);
  for (std::size_t i = 0; i < input.k.size(); i += 64) input.k[i] = 384.0f;
  const SparsePlan plan = testing::make_plan(plan_case, input, 3);
  const KernelResult expected = testing::reference_result(input, plan);
  const Comparison c = testing::compare(input, run(input, plan, 1), expected);
  EXPECT_LE(c.out_relative_l2, 8e-3) << c.worst;
  EXPECT_EQ(c.stat_mismatches, 0);
}

// Key orders: blocks are of slots, and sums belong to a plan head.
TEST(FoldModelExact, key_order_matches_reference) {
  const PlanCase plan_case{PlanKind::kFoldBlocks, {300, 2, 1, 64}, 64, 64};
  const AttentionInput input = testing::structured_input(plan_case.shape);
  SparsePlan plan = testing::make_plan(plan_case, input, 3);
  PlanPass& pass = plan.passes[0];
  // Reverse the first 64 tokens: inside the first tile's own rows nothing is folded.
  for (int head = 0; head < 2; ++head) {
    for (int slot = 0; slot < 300; ++slot) pass.key_order.push_back(slot < 64 ? 63 - slot : slot);
  }
  for (PlanItem& item : pass.items) {
    if (item.kind == ItemKind::kGather) item.count = 1;  // slots and tokens agree for runs only
  }
  for (std::int32_t& index : pass.gather_indices) index = std::max(index, 64);
  const KernelResult expected = testing::reference_result(input, plan);
  const Comparison c = testing::compare(input, run(input, plan, 1), expected);
  EXPECT_LE(c.out_relative_l2, 8e-3) << c.worst;
  EXPECT_EQ(c.stat_mismatches, 0);
}

// A plan whose last tile alone has an item: it gathers the `keys`, and folds the rest below
// `fold_end`.
SparsePlan plan_of_last_tile(const Problem& problem, int fold_block, std::int32_t fold_end,
                             std::vector<std::int32_t> keys) {
  SparsePlan plan(problem, 128, 128);
  plan.header.fold = {.kind = Compensation::kBlocksVariance, .fold_block = fold_block};
  PlanPass& pass = plan.passes[0];
  const auto last = static_cast<std::size_t>(plan.num_tiles() - 1);
  pass.fold_end.assign(last + 1, 0);
  pass.fold_end[last] = fold_end;
  pass.items = {
      {.begin = 0, .count = static_cast<std::int32_t>(keys.size()), .kind = ItemKind::kGather}};
  pass.gather_indices = std::move(keys);
  pass.item_offsets.assign(last + 2, 0);
  pass.item_offsets[last + 1] = 1;
  return plan;
}

// More slots than the bitmap holds at once, most blocks untouched.
TEST(FoldModelExact, slots_beyond_one_bitmap_match_reference) {
  const AttentionInput input = testing::structured_input({66000, 1, 1, 64});
  const std::int32_t end = 65920;
  std::vector<std::int32_t> keys;
  for (std::int32_t key = 5; key < end; key += 37 + key % 1000) keys.push_back(key);
  for (std::int32_t key = 65300; key < 65500; key += 2) keys.push_back(key);
  expect_matches_reference(input, plan_of_last_tile(input.problem, 120, end, keys), 1);
}

// Neighbouring blocks with more visited (or, in the later ones, unvisited) rows than are listed at
// once, besides blocks of few and none.
TEST(FoldModelExact, rows_beyond_one_list_match_reference) {
  const AttentionInput input = testing::structured_input({4096, 1, 1, 128});
  const std::int32_t end = 3968;
  std::vector<std::int32_t> keys;
  for (std::int32_t key = 0; key < end; ++key) {
    const std::int32_t block = key / 128;
    const std::int32_t visited_of_8 = block < 12 ? 3 : block < 16 ? 0 : block < 24 ? 5 : 1;
    if (key % 8 < visited_of_8) keys.push_back(key);
  }
  expect_matches_reference(input, plan_of_last_tile(input.problem, 128, end - 60, keys), 1);
}

}  // namespace
}  // namespace s2o
