// Both attention kernels, run on the CPU model of a GPU: their own source, every plan part, every
// tile shape, several schedules of threads, asynchronous copies, barriers and products.
#include <gtest/gtest.h>
#include <sys/mman.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "kernels/common/bf16.h"
#include "lib/testing/head_taus.h"
#include "lib/testing/model_runner.h"

namespace s2o {
namespace {

using testing::Comparison;
using testing::KernelResult;
using testing::PlanCase;
using testing::PlanKind;
using testing::run_on_model;

bool folds(PlanKind kind) {
  return kind == PlanKind::kFoldCentroid || kind == PlanKind::kFoldBlocks ||
         kind == PlanKind::kFoldVariance;
}

// Every plan part at one small and one large tile; `large` is the shape of the latter.
std::vector<PlanCase> every_kind(const testing::Shape& large) {
  std::vector<PlanCase> list;
  for (const PlanKind kind : testing::all_plan_kinds()) {
    if (folds(kind)) continue;
    list.push_back({kind, {300, 4, 2, 64}, 64, 64});
    list.push_back({kind, large, 128, 128});
  }
  list.push_back({PlanKind::kDense, {1, 2, 1, 64}, 128, 64});
  list.push_back({PlanKind::kDense, {127, 1, 1, 128}, 128, 128});
  list.push_back({PlanKind::kBlocks, {300, 4, 2, 128}, 128, 64});
  list.push_back({PlanKind::kPvSkip, {600, 1, 1, 64}, 64, 128});
  list.push_back({PlanKind::kPvSkip, {600, 1, 1, 64}, 128, 64});
  return list;
}
std::vector<PlanCase> cases_sm80() {
  std::vector<PlanCase> list = every_kind({333, 2, 1, 64});
  list.push_back({PlanKind::kDense, {129, 1, 1, 128}, 64, 64});
  list.push_back({PlanKind::kS2o, {700, 1, 1, 64}, 64, 128});
  list.push_back({PlanKind::kS2o, {700, 1, 1, 64}, 64, 256});
  for (const int head_dim : {96, 256}) {
    list.push_back({PlanKind::kDense, {129, 2, 1, head_dim}, 64, 64});
    list.push_back({PlanKind::kS2o, {333, 2, 1, head_dim}, 128, 128});
    list.push_back({PlanKind::kPvSkip, {300, 1, 1, head_dim}, 64, 64});
  }
  return list;
}
std::vector<PlanCase> cases_sm90() {
  std::vector<PlanCase> list = every_kind({333, 2, 1, 128});
  list.push_back({PlanKind::kDense, {129, 1, 1, 128}, 64, 128});
  list.push_back({PlanKind::kDense, {1000, 1, 1, 64}, 128, 128});
  list.push_back({PlanKind::kS2o, {900, 1, 1, 64}, 64, 128});
  list.push_back({PlanKind::kS2o, {900, 1, 1, 64}, 128, 256});
  list.push_back({PlanKind::kS2o, {900, 2, 1, 128}, 128, 64});
  return list;
}

void expect_matches_reference(AttentionKernel kernel, const PlanCase& plan_case) {
  const AttentionInput input = testing::structured_input(plan_case.shape);
  const SparsePlan plan = testing::make_plan(plan_case, input, 1);
  check_plan(input.problem, plan);
  const KernelResult expected = testing::reference_result(input, plan);
  const Comparison c =
      testing::compare(input, run_on_model(kernel, input, plan, false, 1), expected);
  EXPECT_LE(c.out_relative_l2, 4e-3) << c.worst;  // P is rounded to 8 bits of mantissa
  EXPECT_LE(c.lse_max_error, 2e-5);
  EXPECT_EQ(c.empty_mismatches, 0);
  EXPECT_EQ(c.stop_mismatches, 0);
  EXPECT_EQ(c.stat_mismatches, 0);
}

class Sm80Model : public ::testing::TestWithParam<PlanCase> {};
TEST_P(Sm80Model, matches_reference) {
  expect_matches_reference(AttentionKernel::kSm80, GetParam());
}
INSTANTIATE_TEST_SUITE_P(cases, Sm80Model, ::testing::ValuesIn(cases_sm80()),
                         [](const auto& test) { return testing::plan_case_name(test.param); });

class Sm90Model : public ::testing::TestWithParam<PlanCase> {};
TEST_P(Sm90Model, matches_reference) {
  expect_matches_reference(AttentionKernel::kSm90, GetParam());
}
INSTANTIATE_TEST_SUITE_P(cases, Sm90Model, ::testing::ValuesIn(cases_sm90()),
                         [](const auto& test) { return testing::plan_case_name(test.param); });

class ModelOf : public ::testing::TestWithParam<AttentionKernel> {};
INSTANTIATE_TEST_SUITE_P(kernels, ModelOf,
                         ::testing::Values(AttentionKernel::kSm80, AttentionKernel::kSm90),
                         [](const auto& test) {
                           return test.param == AttentionKernel::kSm80 ? "sm80" : "sm90";
                         });

// Zeros without memory behind them until they are written.
class SparseIndices {
 public:
  explicit SparseIndices(std::size_t count)
      : bytes_(count * sizeof(std::int32_t)),
        memory_(mmap(nullptr, bytes_, PROT_READ | PROT_WRITE,
                     MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0)) {}
  ~SparseIndices() {
    if (mapped()) munmap(memory_, bytes_);
  }
  SparseIndices(const SparseIndices&) = delete;
  SparseIndices& operator=(const SparseIndices&) = delete;
  bool mapped() const { return memory_ != MAP_FAILED; }
  std::int32_t* data() const { return static_cast<std::int32_t*>(memory_); }

 private:
  std::size_t bytes_;
  void* memory_;
};

TEST_P(ModelOf, indices_beyond_2_31_entries_are_gathered) {
  const PlanCase plan_case{PlanKind::kS2o, {600, 2, 1, 64}, 128, 64};
  const AttentionInput input = testing::structured_input(plan_case.shape);
  SparsePlan plan = testing::make_plan(plan_case, input, 1);
  const KernelResult expected = run_on_model(GetParam(), input, plan, false, 1);

  PlanPass& pass = plan.passes[0];
  constexpr std::int64_t kFirst = (1ll << 31) + 12345;
  const SparseIndices indices(kFirst + pass.gather_indices.size());
  if (!indices.mapped()) GTEST_SKIP() << "8 GiB of addresses are not to be had here";
  std::copy(pass.gather_indices.begin(), pass.gather_indices.end(), indices.data() + kFirst);
  for (PlanItem& item : pass.items) {
    if (item.kind == ItemKind::kGather) item.begin += kFirst;
  }
  const PlanPointers pointers(plan);
  PassView far_pass = pointers.view().passes[0];
  far_pass.gather_indices = indices.data();
  PlanView far_plan = pointers.view();
  far_plan.passes = &far_pass;
  const KernelResult actual = run_on_model(GetParam(), input, far_plan, false, 1);
  EXPECT_EQ(actual.out, expected.out);
  EXPECT_EQ(actual.lse, expected.lse);
}

TEST_P(ModelOf, heads_with_a_tau_each_are_those_of_launches_apart) {
  for (const PlanKind kind : {PlanKind::kS2o, PlanKind::kS2oPatience, PlanKind::kS2oTwoPasses}) {
    SCOPED_TRACE(testing::plan_kind_name(kind));
    testing::expect_heads_as_with_one_tau(kind,
                                          [](const AttentionInput& input, const SparsePlan& plan) {
                                            return run_on_model(GetParam(), input, plan, false, 1);
                                          });
  }
}
TEST(HeadTaus, of_the_reference_are_those_of_launches_apart) {
  for (const PlanKind kind : {PlanKind::kS2o, PlanKind::kS2oPatience, PlanKind::kS2oTwoPasses}) {
    SCOPED_TRACE(testing::plan_kind_name(kind));
    testing::expect_heads_as_with_one_tau(
        kind, [](const AttentionInput& input, const SparsePlan& plan) {
          const testing::Executed result = testing::execute(input, plan);
          return KernelResult{.out = result.out, .lse = result.lse, .stats = result.stats};
        });
  }
}

// Early stops, drops and gathers under many interleavings of warps, copies and products.
TEST_P(ModelOf, any_schedule_gives_identical_bits) {
  for (const PlanCase& plan_case : {PlanCase{PlanKind::kS2o, {600, 1, 1, 64}, 128, 64},
                                    PlanCase{PlanKind::kS2oPatience, {600, 2, 1, 64}, 64, 128},
                                    PlanCase{PlanKind::kPvSkip, {600, 1, 1, 64}, 128, 128}}) {
    const AttentionInput input = testing::structured_input(plan_case.shape);
    const SparsePlan plan = testing::make_plan(plan_case, input, 1);
    const KernelResult first = run_on_model(GetParam(), input, plan, false, 1);
    for (std::uint64_t seed = 2; seed < 10; ++seed) {
      const KernelResult other = run_on_model(GetParam(), input, plan, false, seed);
      EXPECT_EQ(first.out, other.out) << testing::plan_case_name(plan_case) << " seed " << seed;
      EXPECT_EQ(first.lse, other.lse) << testing::plan_case_name(plan_case) << " seed " << seed;
    }
  }
}

// Tiles at the end of a head, rows in another order and passes that resume among them.
TEST_P(ModelOf, output_in_16_bit_is_the_rounded_one) {
  for (const PlanCase& plan_case : {PlanCase{PlanKind::kBlocks, {300, 2, 1, 64}, 128, 128},
                                    PlanCase{PlanKind::kDense, {300, 2, 1, 128}, 64, 64},
                                    PlanCase{PlanKind::kS2oTwoPasses, {600, 2, 1, 128}, 128, 64},
                                    PlanCase{PlanKind::kPacked, {300, 4, 1, 64}, 128, 128},
                                    PlanCase{PlanKind::kPvSkip, {600, 1, 1, 64}, 128, 128}}) {
    const AttentionInput input = testing::structured_input(plan_case.shape);
    const SparsePlan plan = testing::make_plan(plan_case, input, 1);
    const PlanPointers pointers(plan);
    KernelResult wide = run_on_model(GetParam(), input, pointers.view(), false, 1);
    const KernelResult narrow = run_on_model(GetParam(), input, pointers.view(), false, 1, true);
    for (float& value : wide.out) value = round_bf16(value);
    EXPECT_EQ(narrow.out, wide.out) << testing::plan_case_name(plan_case);
    EXPECT_EQ(narrow.lse, wide.lse) << testing::plan_case_name(plan_case);
  }
}

// Probabilities relative to a maximum that the row has not visited would be too small for fp16.
TEST_P(ModelOf, fp16_matches_reference) {
  for (const PlanCase& plan_case : {PlanCase{PlanKind::kBlocks, {300, 2, 1, 64}, 128, 128},
                                    PlanCase{PlanKind::kS2o, {1000, 4, 1, 64}, 128, 64}}) {
    const AttentionInput input =
        testing::structured_input(plan_case.shape, "mixed", StorageDType::kF16);
    const SparsePlan plan = testing::make_plan(plan_case, input, 1);
    const Comparison c = testing::compare(input, run_on_model(GetParam(), input, plan, false, 1),
                                          testing::reference_result(input, plan));
    EXPECT_LE(c.out_relative_l2, 5e-4) << testing::plan_case_name(plan_case) << ' ' << c.worst;
    EXPECT_EQ(c.stat_mismatches, 0);
  }
}

// Its output is zero, whatever lies in values that nobody visits.
TEST_P(ModelOf, tile_without_items_meets_no_values) {
  AttentionInput input = testing::structured_input({256, 1, 1, 64});
  std::fill_n(input.v.begin(), 128 * 64, std::numeric_limits<float>::quiet_NaN());
  SparsePlan plan(input.problem, 128, 128);
  PlanBuilder builder(plan);
  builder.add(0, 1, {.begin = 128, .count = 128, .mask = MaskClass::kCausal});
  builder.finish(plan.passes[0]);
  const KernelResult result = run_on_model(GetParam(), input, plan, false, 1);
  for (std::size_t i = 0; i < 128 * 64; ++i) ASSERT_EQ(result.out[i], 0.0f) << i;
  for (std::size_t i = 128 * 64; i < result.out.size(); ++i) {
    ASSERT_TRUE(std::isfinite(result.out[i])) << i;
  }
  EXPECT_EQ(result.lse[127], -std::numeric_limits<float>::infinity());
  EXPECT_TRUE(std::isfinite(result.lse[128]));
}

TEST(Sm80ModelAccuracy, three_terms_reach_fp32) {
  const PlanCase plan_case{PlanKind::kDense, {200, 2, 1, 64}, 64, 64};
  const AttentionInput input = testing::structured_input(plan_case.shape);
  const SparsePlan plan = testing::make_plan(plan_case, input, 1);
  const Comparison c =
      testing::compare(input, run_on_model(AttentionKernel::kSm80, input, plan, true, 1),
                       testing::reference_result(input, plan));
  EXPECT_LE(c.out_relative_l2, 1e-6) << c.worst;
}

}  // namespace
}  // namespace s2o
