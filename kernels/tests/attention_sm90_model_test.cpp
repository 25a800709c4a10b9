// The Hopper kernel, run on the CPU model of a GPU: producer, consumers, mbarriers, tensor-map
// boxes and warpgroup products, over every plan part and under several schedules.
#include <gtest/gtest.h>

#include <cstring>

#include "kernels/attention/mainloop_sm90.cuh"
#include "kernels/testing/model_runner.h"

namespace s2o {
namespace {

using device::Bf16;
using device::Fp16;
using device::SharedSm90;
using device::TensorMaps;
using device::TraitsSm90;
using testing::Comparison;
using testing::KernelResult;
using testing::PlanCase;
using testing::PlanKind;

device::TensorMap model_map(const void* base, const Problem& problem, int box_rows) {
  const device::ModelTensorMap model{static_cast<const std::uint16_t*>(base), problem.head_dim,
                                     problem.seqlen, problem.num_kv_heads, box_rows};
  device::TensorMap map{};
  static_assert(sizeof(model) <= sizeof(map.bytes));
  std::memcpy(map.bytes, &model, sizeof(model));
  return map;
}

// Few blocks, so that each runs several tiles.
constexpr int kBlocks = 2;

template <class Traits>
void launch_model(const AttentionKernelArgs& args, const Problem& problem, std::uint64_t seed) {
  const TensorMaps maps{model_map(args.k, problem, Traits::kTileN),
                        model_map(args.v, problem, Traits::kTileN)};
  const simt::LaunchConfig config{.num_blocks = kBlocks,
                                  .num_threads = Traits::kThreads,
                                  .shared_bytes = sizeof(SharedSm90<Traits>),
                                  .seed = seed};
  simt::launch(config, [&] { device::attention_sm90_body<Traits>(args, maps); });
}

template <class Element, int kHeadDim>
void launch_shape(const AttentionKernelArgs& args, const Problem& problem, TileShape tile,
                  std::uint64_t seed) {
  if (tile.tile_m == 64 && tile.tile_n == 64) {
    launch_model<TraitsSm90<Element, kHeadDim, 64, 64, true>>(args, problem, seed);
  } else if (tile.tile_m == 64) {
    launch_model<TraitsSm90<Element, kHeadDim, 64, 128, true>>(args, problem, seed);
  } else if (tile.tile_n == 64) {
    launch_model<TraitsSm90<Element, kHeadDim, 128, 64, true>>(args, problem, seed);
  } else {
    launch_model<TraitsSm90<Element, kHeadDim, 128, 128, true>>(args, problem, seed);
  }
}

KernelResult run(const AttentionInput& input, const SparsePlan& plan, std::uint64_t seed) {
  const Problem& problem = input.problem;
  const TileShape tile = choose_tile(AttentionKernel::kSm90, problem, plan.header, false);
  const bool bf16 = input.dtype == StorageDType::kBF16;
  const auto pass = [&](const AttentionKernelArgs& args) {
    if (problem.head_dim == 64) {
      bf16 ? launch_shape<Bf16, 64>(args, problem, tile, seed)
           : launch_shape<Fp16, 64>(args, problem, tile, seed);
    } else {
      launch_shape<Bf16, 128>(args, problem, tile, seed);
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
    list.push_back({kind, {333, 2, 1, 128}, 128, 128});
  }
  list.push_back({PlanKind::kDense, {1, 2, 1, 64}, 128, 64});
  list.push_back({PlanKind::kDense, {127, 1, 1, 128}, 128, 128});
  list.push_back({PlanKind::kDense, {129, 1, 1, 128}, 64, 128});
  list.push_back({PlanKind::kDense, {1000, 1, 1, 64}, 128, 128});
  list.push_back({PlanKind::kBlocks, {300, 4, 2, 128}, 128, 64});
  list.push_back({PlanKind::kPvSkip, {600, 1, 1, 64}, 64, 128});
  list.push_back({PlanKind::kPvSkip, {600, 1, 1, 64}, 128, 64});
  list.push_back({PlanKind::kS2o, {900, 1, 1, 64}, 64, 128});
  list.push_back({PlanKind::kS2o, {900, 1, 1, 64}, 128, 256});
  list.push_back({PlanKind::kS2o, {900, 2, 1, 128}, 128, 64});
  return list;
}

class Sm90Model : public ::testing::TestWithParam<PlanCase> {};

TEST_P(Sm90Model, matches_reference) {
  const AttentionInput input = testing::structured_input(GetParam().shape);
  const SparsePlan plan = testing::make_plan(GetParam(), input, 1);
  check_plan(input.problem, plan);
  const KernelResult expected = testing::reference_result(input, plan);
  const Comparison c = testing::compare(input, run(input, plan, 1), expected);
  EXPECT_LE(c.out_relative_l2, 4e-3) << c.worst;  // P is rounded to 8 bits of mantissa
  EXPECT_LE(c.lse_max_error, 2e-5);
  EXPECT_EQ(c.empty_mismatches, 0);
  EXPECT_EQ(c.stop_mismatches, 0);
  EXPECT_EQ(c.stat_mismatches, 0);
}

INSTANTIATE_TEST_SUITE_P(cases, Sm90Model, ::testing::ValuesIn(cases()),
                         [](const auto& test) { return testing::plan_case_name(test.param); });

// Early stops, drops and gathers under many interleavings of warps, copies and products.
TEST(Sm90ModelSchedules, any_schedule_gives_identical_bits) {
  for (const PlanCase& plan_case : {PlanCase{PlanKind::kS2o, {600, 1, 1, 64}, 128, 64},
                                    PlanCase{PlanKind::kS2oPatience, {600, 2, 1, 64}, 64, 128},
                                    PlanCase{PlanKind::kPvSkip, {600, 1, 1, 64}, 128, 128}}) {
    const AttentionInput input = testing::structured_input(plan_case.shape);
    const SparsePlan plan = testing::make_plan(plan_case, input, 1);
    const KernelResult first = run(input, plan, 1);
    for (std::uint64_t seed = 2; seed < 10; ++seed) {
      const KernelResult other = run(input, plan, seed);
      EXPECT_EQ(first.out, other.out) << testing::plan_case_name(plan_case) << " seed " << seed;
      EXPECT_EQ(first.lse, other.lse) << testing::plan_case_name(plan_case) << " seed " << seed;
    }
  }
}

TEST(Sm90ModelAccuracy, fp16_matches_reference) {
  const PlanCase plan_case{PlanKind::kBlocks, {300, 2, 1, 64}, 128, 128};
  const AttentionInput input =
      testing::structured_input(plan_case.shape, "mixed", StorageDType::kF16);
  const SparsePlan plan = testing::make_plan(plan_case, input, 1);
  const Comparison c =
      testing::compare(input, run(input, plan, 1), testing::reference_result(input, plan));
  EXPECT_LE(c.out_relative_l2, 5e-4) << c.worst;
}

}  // namespace
}  // namespace s2o
