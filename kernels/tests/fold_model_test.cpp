// Folded columns on the CPU model: after the portable kernel, on every kind of fold.
#include <gtest/gtest.h>

#include "kernels/attention/fold_sm80.cuh"
#include "kernels/attention/mainloop_sm80.cuh"
#include "kernels/testing/model_runner.h"

namespace s2o {
namespace {

using device::Bf16;
using device::FoldSm80;
using device::MainloopSm80;
using device::SharedFold;
using device::SharedSm80;
using device::TraitsFold;
using device::TraitsSm80;
using testing::Comparison;
using testing::KernelResult;
using testing::PlanCase;
using testing::PlanKind;

template <class Traits>
void launch_pass(const AttentionKernelArgs& args, std::uint64_t seed) {
  simt::launch({.num_blocks = args.num_tiles,
                .num_threads = Traits::kThreads,
                .shared_bytes = sizeof(SharedSm80<Traits>),
                .seed = seed},
               [&args] { MainloopSm80<Traits>(args).run(); });
}

template <class Traits>
void launch_fold(const AttentionKernelArgs& args, const Problem& problem, std::uint64_t seed) {
  const int num_sets = args.pass.key_order != nullptr
                           ? problem.num_kv_heads * args.plan_heads_per_kv_head
                           : problem.num_kv_heads;
  const std::int64_t num_blocks = problem.seqlen / args.fold.fold_block;
  const auto size = static_cast<std::size_t>(num_blocks * num_sets * problem.head_dim);
  std::vector<float> k(size), v(size), k_squared(size);
  const BlockSumsView sums{k.data(), v.data(), k_squared.data(), num_blocks};
  const int num_sums = static_cast<int>(num_blocks) * num_sets;
  simt::launch({.num_blocks = num_sums / 2 + 1, .num_threads = 64, .shared_bytes = 0, .seed = seed},
               [&] {
                 device::block_sums_warp<typename Traits::Element, Traits::kHeadDim>(
                     args, sums, num_sets, device::block_index() * 2 + device::warp_index());
               });
  simt::launch({.num_blocks = args.num_tiles,
                .num_threads = Traits::kThreads,
                .shared_bytes = sizeof(SharedFold<Traits>),
                .seed = seed},
               [&] { FoldSm80<Traits>(args, sums).run(); });
}

template <int kHeadDim, int kTileM>
KernelResult run_instance(const AttentionInput& input, const SparsePlan& plan, std::uint64_t seed) {
  return testing::run_on_model(
      input, plan, KernelDType::kBf16,
      {.pass =
           [seed](const AttentionKernelArgs& args) {
             launch_pass<TraitsSm80<Bf16, kHeadDim, kTileM, 64, 1>>(args, seed);
           },
       .fold =
           [&input, seed](const AttentionKernelArgs& args) {
             launch_fold<TraitsFold<Bf16, kHeadDim, kTileM>>(args, input.problem, seed);
           }});
}

KernelResult run(const AttentionInput& input, const SparsePlan& plan, std::uint64_t seed) {
  if (input.problem.head_dim == 128) return run_instance<128, 64>(input, plan, seed);
  return plan.header.block_m == 64 ? run_instance<64, 64>(input, plan, seed)
                                   : run_instance<64, 128>(input, plan, seed);
}

class FoldModel : public ::testing::TestWithParam<PlanCase> {};

TEST_P(FoldModel, matches_reference) {
  const AttentionInput input = testing::structured_input(GetParam().shape);
  const SparsePlan plan = testing::make_plan(GetParam(), input, 3);
  check_plan(input.problem, plan);
  const KernelResult expected = testing::reference_result(input, plan);
  const Comparison c = testing::compare(input, run(input, plan, 1), expected);
  // Mean keys, mean values and variances are rounded to 8 bits of mantissa like P.
  EXPECT_LE(c.out_relative_l2, 8e-3) << c.worst;
  EXPECT_LE(c.lse_max_error, 5e-3);
  EXPECT_EQ(c.empty_mismatches, 0);
  EXPECT_EQ(c.stat_mismatches, 0);
}

std::vector<PlanCase> cases() {
  std::vector<PlanCase> list;
  for (const PlanKind kind :
       {PlanKind::kFoldCentroid, PlanKind::kFoldBlocks, PlanKind::kFoldVariance}) {
    list.push_back({kind, {300, 4, 2, 64}, 64, 64});
    list.push_back({kind, {333, 2, 1, 64}, 128, 128});
    list.push_back({kind, {200, 1, 1, 128}, 64, 64});
  }
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

}  // namespace
}  // namespace s2o
