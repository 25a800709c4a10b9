// The portable kernel, run on the CPU model of a GPU: its own source, every plan part, every tile
// shape, several schedules of threads and of asynchronous copies.
#include <gtest/gtest.h>

#include "kernels/attention/mainloop_sm80.cuh"
#include "kernels/testing/model_runner.h"

namespace s2o {
namespace {

using device::Bf16;
using device::Fp16;
using device::SharedSm80;
using device::TraitsSm80;
using testing::Comparison;
using testing::KernelResult;
using testing::PlanCase;
using testing::PlanKind;

template <class Traits>
void launch_model(const AttentionKernelArgs& args, std::uint64_t seed) {
  const simt::LaunchConfig config{.num_blocks = args.num_tiles,
                                  .num_threads = Traits::kThreads,
                                  .shared_bytes = sizeof(SharedSm80<Traits>),
                                  .seed = seed};
  simt::launch(config, [&args] { device::MainloopSm80<Traits>(args).run(); });
}

template <class Element, int kHeadDim>
void launch_shape(const AttentionKernelArgs& args, TileShape tile, std::uint64_t seed) {
  if (tile.pv_terms == 3) {
    launch_model<TraitsSm80<Element, kHeadDim, 64, 64, 3>>(args, seed);
  } else if (tile.tile_m == 64 && tile.tile_n == 64) {
    launch_model<TraitsSm80<Element, kHeadDim, 64, 64, 1>>(args, seed);
  } else if (tile.tile_m == 64) {
    launch_model<TraitsSm80<Element, kHeadDim, 64, 128, 1>>(args, seed);
  } else if (tile.tile_n == 64) {
    launch_model<TraitsSm80<Element, kHeadDim, 128, 64, 1>>(args, seed);
  } else {
    launch_model<TraitsSm80<Element, kHeadDim, 128, 128, 1>>(args, seed);
  }
}

KernelResult run(const AttentionInput& input, const SparsePlan& plan, bool fp32_accuracy,
                 std::uint64_t seed) {
  const TileShape tile =
      choose_tile(AttentionKernel::kSm80, input.problem, plan.header, fp32_accuracy);
  const bool bf16 = input.dtype == StorageDType::kBF16;
  const auto pass = [&](const AttentionKernelArgs& args) {
    if (input.problem.head_dim == 64) {
      bf16 ? launch_shape<Bf16, 64>(args, tile, seed) : launch_shape<Fp16, 64>(args, tile, seed);
    } else {
      launch_shape<Bf16, 128>(args, tile, seed);
    }
  };
  return testing::run_on_model(input, plan, bf16 ? KernelDType::kBf16 : KernelDType::kFp16,
                               {.pass = pass, .fold = {}});
}

bool folds(PlanKind kind) {
  return kind == PlanKind::kFoldCentroid || kind == PlanKind::kFoldBlocks ||
         kind == PlanKind::kFoldVariance;
}

std::vector<PlanCase> cases() {
  std::vector<PlanCase> list;
  for (const PlanKind kind : testing::all_plan_kinds()) {
    if (folds(kind)) continue;
    list.push_back({kind, {300, 4, 2, 64}, 64, 64});
    list.push_back({kind, {333, 2, 1, 64}, 128, 128});
  }
  list.push_back({PlanKind::kDense, {1, 2, 1, 64}, 128, 64});
  list.push_back({PlanKind::kDense, {127, 1, 1, 128}, 128, 128});
  list.push_back({PlanKind::kDense, {129, 1, 1, 128}, 64, 64});
  list.push_back({PlanKind::kBlocks, {300, 4, 2, 128}, 128, 64});
  list.push_back({PlanKind::kPvSkip, {600, 1, 1, 64}, 64, 128});
  list.push_back({PlanKind::kPvSkip, {600, 1, 1, 64}, 128, 64});
  list.push_back({PlanKind::kS2o, {700, 1, 1, 64}, 64, 128});
  list.push_back({PlanKind::kS2o, {700, 1, 1, 64}, 64, 256});
  return list;
}

class Sm80Model : public ::testing::TestWithParam<PlanCase> {};

TEST_P(Sm80Model, matches_reference) {
  const AttentionInput input = testing::structured_input(GetParam().shape);
  const SparsePlan plan = testing::make_plan(GetParam(), input, 1);
  check_plan(input.problem, plan);
  const KernelResult expected = testing::reference_result(input, plan);
  const KernelResult actual = run(input, plan, false, 1);
  const Comparison c = testing::compare(input, actual, expected);
  EXPECT_LE(c.out_relative_l2, 4e-3) << c.worst;  // P is rounded to 8 bits of mantissa
  EXPECT_LE(c.lse_max_error, 2e-5);
  EXPECT_EQ(c.empty_mismatches, 0);
  EXPECT_EQ(c.stop_mismatches, 0);
  EXPECT_EQ(c.stat_mismatches, 0);
}

INSTANTIATE_TEST_SUITE_P(cases, Sm80Model, ::testing::ValuesIn(cases()),
                         [](const auto& info) { return testing::plan_case_name(info.param); });

TEST(Sm80ModelSchedules, any_schedule_gives_identical_bits) {
  const PlanCase plan_case{PlanKind::kS2o, {333, 2, 1, 64}, 64, 128};
  const AttentionInput input = testing::structured_input(plan_case.shape);
  const SparsePlan plan = testing::make_plan(plan_case, input, 1);
  const KernelResult first = run(input, plan, false, 1);
  for (std::uint64_t seed = 2; seed < 7; ++seed) {
    const KernelResult other = run(input, plan, false, seed);
    EXPECT_EQ(first.out, other.out) << seed;
    EXPECT_EQ(first.lse, other.lse) << seed;
  }
}

TEST(Sm80ModelAccuracy, three_terms_reach_fp32) {
  const PlanCase plan_case{PlanKind::kDense, {200, 2, 1, 64}, 64, 64};
  const AttentionInput input = testing::structured_input(plan_case.shape);
  const SparsePlan plan = testing::make_plan(plan_case, input, 1);
  const Comparison c =
      testing::compare(input, run(input, plan, true, 1), testing::reference_result(input, plan));
  EXPECT_LE(c.out_relative_l2, 1e-6) << c.worst;
}

TEST(Sm80ModelAccuracy, fp16_matches_reference) {
  const PlanCase plan_case{PlanKind::kBlocks, {300, 2, 1, 64}, 128, 128};
  const AttentionInput input =
      testing::structured_input(plan_case.shape, "mixed", StorageDType::kF16);
  const SparsePlan plan = testing::make_plan(plan_case, input, 1);
  const Comparison c =
      testing::compare(input, run(input, plan, false, 1), testing::reference_result(input, plan));
  EXPECT_LE(c.out_relative_l2, 5e-4) << c.worst;
}

}  // namespace
}  // namespace s2o
