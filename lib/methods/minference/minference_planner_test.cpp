// The planner of MInference on the CPU model of a GPU: what the agreement of every method
// (agreement_test.cpp) does not reach.
#include <gtest/gtest.h>

#include <limits>

#include "lib/testing/agreement.h"
#include "lib/testing/model_planning.h"

namespace s2o {
namespace {

using testing::Shape;
using testing::structured_input;

TEST(MinferencePlanner, few_tokens_agree_with_the_cpu) {
  const Method& method = find_method("minference");
  for (const Shape& shape : {Shape{40, 1, 1, 64}, Shape{1, 1, 1, 64}}) {
    const AttentionInput input = structured_input(shape, "stripes");
    for (const auto& params : method.info().device.settings) {
      const auto planner = testing::planner_of(method, input, params);
      testing::expect_agreement(method, input, params,
                                testing::plan_on_model(*planner, input).plan);
    }
  }
}

TEST(MinferencePlanner, logits_that_are_not_finite_name_their_head) {
  AttentionInput input = structured_input({600, 2, 1, 64});
  input.q[static_cast<std::size_t>((600 + 590) * 64)] = std::numeric_limits<float>::quiet_NaN();
  const auto planner = testing::planner_of(find_method("minference"), input, {});
  const std::uint32_t bad = testing::plan_on_model(*planner, input).error_word;
  EXPECT_EQ(planner->row_name(static_cast<std::int64_t>(~bad)), "query head 1, query tile 0");
}

}  // namespace
}  // namespace s2o
