// Attention over quantised input, run on the CPU model of a GPU: every plan part against the
// reference of the same 8-bit numbers.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <limits>
#include <string>

#include "kernels/attention/attention.h"
#include "kernels/common/error.h"
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

KernelResult quantised_reference(const AttentionInput& input, const SparsePlan& plan,
                                 QuantiseRule rule = {}) {
  KernelResult result;
  result.out.resize(input.q.size());
  result.lse.resize(static_cast<std::size_t>(input.problem.seqlen * input.problem.num_q_heads));
  result.stats.resize(plan.passes.size() * static_cast<std::size_t>(plan.num_tiles()));
  attention_quantised_ref(input.problem, PlanPointers(plan).view(), input.q.data(), input.k.data(),
                          input.v.data(), rule, result.out.data(), result.lse.data(),
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

// Refused heads are named with what was found, in the words of the reference.
TEST(QuantisedModel, what_it_cannot_do_names_found_and_supported) {
  const auto messages = [](const AttentionInput& input, const QuantiseRule& rule) {
    const SparsePlan plan =
        testing::make_plan({PlanKind::kDense, {512, 2, 2, 128}, 128, 128}, input, 1);
    std::vector<std::string> texts;
    for (const bool on_model : {true, false}) {
      try {
        on_model ? testing::run_quantised_on_model(input, plan, rule, 1)
                 : quantised_reference(input, plan, rule);
        texts.emplace_back("nothing");
      } catch (const UnsupportedError& error) {
        texts.emplace_back(error.what());
      }
    }
    return texts;
  };
  using ::testing::Each;
  using ::testing::StartsWith;
  const AttentionInput input = testing::structured_input({512, 2, 2, 128});
  const auto head = static_cast<std::size_t>(512 * 128);
  AttentionInput outlier = input;
  for (std::size_t i = 0; i < 128; ++i) outlier.k[head + 400 * 128 + i] = i == 5 ? 1e4f : 0.0f;
  EXPECT_THAT(messages(outlier, {.rotate_qk = false}),
              Each(StartsWith("compute fp8: head 1 of k: the largest size is 255.")));
  for (const float bad :
       {std::numeric_limits<float>::infinity(), std::numeric_limits<float>::quiet_NaN()}) {
    for (const auto& [tensor, name] :
         {std::pair(&AttentionInput::q, "q"), std::pair(&AttentionInput::k, "k"),
          std::pair(&AttentionInput::v, "v")}) {
      AttentionInput broken = input;
      (broken.*tensor)[head + 7] = bad;
      EXPECT_THAT(messages(broken, {}), Each(StartsWith(std::string("compute fp8: head 1 of ") +
                                                        name + ": the largest size is ")))
          << bad;
    }
  }
  AttentionInput large = input;
  for (std::size_t i = head; i < 2 * head; ++i) large.q[i] *= 1e6f;
  EXPECT_THAT(
      messages(large, {}),
      Each(StartsWith("compute fp8: head 1 of q: a unit of the integer product is a logit of ")));
}

}  // namespace
}  // namespace s2o
