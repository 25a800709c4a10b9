// Attention in 8 bits on a Hopper GPU: every plan part against the reference of the same 8-bit
// numbers, edges of shapes, both element types, repeatability, and what it cannot do.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <limits>

#include "kernels/attention/attention.h"
#include "kernels/common/bf16.h"
#include "kernels/common/error.h"
#include "lib/testing/device_runner.h"
#include "lib/testing/model_runner.h"

namespace s2o {
namespace {

using testing::Comparison;
using testing::KernelResult;
using testing::PlanCase;
using testing::PlanKind;
using testing::Shape;

KernelResult quantised_reference(const AttentionInput& input, const SparsePlan& plan,
                                 const QuantiseRule& rule) {
  KernelResult result;
  result.out.resize(input.q.size());
  result.lse.resize(static_cast<std::size_t>(input.problem.seqlen * input.problem.num_q_heads));
  result.stats.resize(plan.passes.size() * static_cast<std::size_t>(plan.num_tiles()));
  attention_quantised_ref(input.problem, PlanPointers(plan).view(), input.q.data(), input.k.data(),
                          input.v.data(), rule, result.out.data(), result.lse.data(),
                          result.stats.data());
  return result;
}
KernelResult run_on_gpu(const AttentionInput& input, const SparsePlan& plan,
                        const QuantiseRule& rule = {}, OutputType output = OutputType::kFp32) {
  return testing::run_on_device(testing::device_with("sm90"), input, plan,
                                {.output = output, .quantise = rule});
}
bool has_folds(PlanKind kind) {
  return kind == PlanKind::kFoldCentroid || kind == PlanKind::kFoldBlocks ||
         kind == PlanKind::kFoldVariance;
}

class QuantisedOnGpu : public ::testing::Test {
 protected:
  void SetUp() override {
    if (const std::string refusal = testing::device_refusal("sm90"); !refusal.empty()) {
      GTEST_SKIP() << "attention_sm90: " << refusal;
    }
  }
};

TEST_F(QuantisedOnGpu, every_plan_part_matches_the_reference) {
  for (const PlanKind kind : testing::all_plan_kinds()) {
    for (const Shape& shape : {Shape{1, 4, 4, 128}, Shape{127, 4, 2, 128}, Shape{129, 4, 1, 128},
                               Shape{1000, 4, 2, 128}, Shape{5003, 2, 1, 128}}) {
      for (const int block_m : {64, 128}) {
        if (block_m == 64 && shape.seqlen > 1000) continue;
        const PlanCase plan_case{kind, shape, block_m, 128};
        for (const StorageDType dtype : {StorageDType::kBF16, StorageDType::kF16}) {
          SCOPED_TRACE(testing::plan_case_name(plan_case));
          const AttentionInput input = testing::structured_input(shape, "mixed", dtype);
          const SparsePlan plan = testing::make_plan(plan_case, input, 1);
          const QuantiseRule rule{.smooth_k = dtype == StorageDType::kBF16,
                                  .rotate_qk = block_m == 128};
          const KernelResult found = run_on_gpu(input, plan, rule);
          const Comparison c =
              testing::compare(input, found, quantised_reference(input, plan, rule));
          // Products of e4m3 keep some 14 bits. The reference's logits are rounded, which moves few
          // to the next code: in a row of few keys some per cent of its output, and up to ln 9/8
          // of its lse. Folded columns add what their own kernel rounds.
          EXPECT_LE(c.out_relative_l2, has_folds(kind) ? 4e-2 : 2e-2) << c.worst;
          EXPECT_LE(c.lse_max_error, has_folds(kind) ? 0.25 : 0.12);
          EXPECT_EQ(c.empty_mismatches, 0);
          EXPECT_EQ(kind == PlanKind::kPvSkip ? 0 : c.stop_mismatches, 0);
        }
      }
    }
  }
}

TEST_F(QuantisedOnGpu, runs_are_bit_identical) {
  const AttentionInput input = testing::structured_input({5003, 8, 2, 128}, "mixed");
  for (const PlanKind kind : {PlanKind::kDense, PlanKind::kUnalignedRuns, PlanKind::kS2o}) {
    const SparsePlan plan = testing::make_plan({kind, {5003, 8, 2, 128}, 128, 128}, input, 1);
    const KernelResult first = run_on_gpu(input, plan, {}, OutputType::kInput);
    for (int i = 0; i < 3; ++i) {
      const KernelResult again = run_on_gpu(input, plan, {}, OutputType::kInput);
      EXPECT_EQ(std::memcmp(first.out.data(), again.out.data(), first.out.size() * sizeof(float)),
                0);
      EXPECT_EQ(std::memcmp(first.lse.data(), again.lse.data(), first.lse.size() * sizeof(float)),
                0);
    }
  }
}

// Sums of many keys whose values have a mean: what few bits of a running sum would lose.
TEST_F(QuantisedOnGpu, long_sums_keep_their_bits) {
  AttentionInput input = testing::structured_input({32768, 1, 1, 128});
  for (float& value : input.q) value *= 0.1f;
  for (float& value : input.v) value = bf16_to_float(float_to_bf16(value * 0.1f + 1.0f));
  const SparsePlan plan = dense_plan(input.problem, 128, 128);
  const Comparison c =
      testing::compare(input, run_on_gpu(input, plan), quantised_reference(input, plan, {}));
  EXPECT_LE(c.out_relative_l2, 5e-3) << c.worst;
}

TEST_F(QuantisedOnGpu, heads_of_zeros_are_exact) {
  AttentionInput input = testing::structured_input({1000, 2, 2, 128});
  const auto one_head = static_cast<std::ptrdiff_t>(1000 * 128);
  std::fill_n(input.k.begin(), one_head, 0.0f);
  std::fill(input.v.begin() + one_head, input.v.end(), 0.0f);
  const SparsePlan plan = dense_plan(input.problem, 128, 128);
  const KernelResult found = run_on_gpu(input, plan);
  EXPECT_LE(testing::compare(input, found, quantised_reference(input, plan, {})).out_relative_l2,
            1e-2);
  EXPECT_TRUE(std::all_of(found.out.begin() + one_head, found.out.end(),
                          [](float value) { return value == 0.0f; }));
}

TEST_F(QuantisedOnGpu, what_it_cannot_do_names_found_and_supported) {
  const auto message = [](const AttentionInput& input, const QuantiseRule& rule,
                          int block_n = 128) -> std::string {
    try {
      run_on_gpu(input, dense_plan(input.problem, 128, block_n), rule);
    } catch (const UnsupportedError& error) {
      return error.what();
    }
    return "";
  };
  EXPECT_THAT(message(testing::structured_input({300, 1, 1, 64}), {}),
              ::testing::HasSubstr("head_dim 64, supported is 128"));
  AttentionInput input = testing::structured_input({512, 2, 2, 128});
  EXPECT_THAT(message(input, {}, 64), ::testing::HasSubstr("supported are multiples of 128"));
  input.k[512 * 128 + 400 * 128 + 5] = 1e4f;
  EXPECT_THAT(message(input, {.rotate_qk = false}), ::testing::HasSubstr("head 1 of k"));
  for (const auto tensor : {&AttentionInput::q, &AttentionInput::k, &AttentionInput::v}) {
    AttentionInput infinite = testing::structured_input({512, 2, 2, 128});
    (infinite.*tensor)[512 * 128 + 7] = std::numeric_limits<float>::infinity();
    EXPECT_THAT(message(infinite, {}), ::testing::HasSubstr("head 1 of")) << "inf";
  }
}

}  // namespace
}  // namespace s2o
