// Attention over quantised input, run on the CPU model of a GPU: every plan part against the
// reference of the same 8-bit numbers.
#include <gtest/gtest.h>

#include "kernels/attention/attention.h"
#include "lib/testing/model_runner.h"

namespace s2o {
namespace {

using testing::KernelResult;
using testing::PlanCase;
using testing::PlanKind;

std::vector<PlanCase> quantised_cases() {
  std::vector<PlanCase> list;
  for (const PlanKind kind : testing::all_plan_kinds()) {
    const bool folds = kind == PlanKind::kFoldCentroid || kind == PlanKind::kFoldBlocks ||
                       kind == PlanKind::kFoldVariance;
    if (!folds) list.push_back({kind, {333, 2, 1, 128}, 128, 128});
  }
  list.push_back({PlanKind::kDense, {1, 1, 1, 128}, 128, 128});
  list.push_back({PlanKind::kDense, {2500, 1, 1, 128}, 128, 128});  // sums leave the registers
  return list;
}

KernelResult quantised_reference(const AttentionInput& input, const SparsePlan& plan) {
  KernelResult result;
  result.out.resize(input.q.size());
  result.lse.resize(static_cast<std::size_t>(input.problem.seqlen * input.problem.num_q_heads));
  result.stats.resize(plan.passes.size() * static_cast<std::size_t>(plan.num_tiles()));
  attention_quantised_ref(input.problem, PlanPointers(plan).view(), input.q.data(), input.k.data(),
                          input.v.data(), {}, result.out.data(), result.lse.data(),
                          result.stats.data());
  return result;
}

class QuantisedModel : public ::testing::TestWithParam<PlanCase> {};
INSTANTIATE_TEST_SUITE_P(cases, QuantisedModel, ::testing::ValuesIn(quantised_cases()),
                         [](const auto& test) { return testing::plan_case_name(test.param); });

TEST_P(QuantisedModel, matches_reference) {
  const AttentionInput input = testing::structured_input(GetParam().shape);
  const SparsePlan plan = testing::make_plan(GetParam(), input, 1);
  const KernelResult expected = quantised_reference(input, plan);
  const testing::Comparison c =
      testing::compare(input, testing::run_quantised_on_model(input, plan, {}, 1), expected);
  // The reference's logits are rounded, which moves few of them to the next code. In a row of
  // few keys this is some per cent of its output, and up to ln 9/8 of its lse.
  EXPECT_LE(c.out_relative_l2, 2e-2) << c.worst;
  EXPECT_LE(c.lse_max_error, 0.12);
  EXPECT_EQ(c.empty_mismatches, 0);
  EXPECT_EQ(c.stop_mismatches, 0);
}

}  // namespace
}  // namespace s2o
