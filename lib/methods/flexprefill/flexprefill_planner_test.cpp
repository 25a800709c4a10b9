// The planner of FlexPrefill on the CPU model of a GPU: no head, some heads or all heads are query
// aware. The agreement of every method: agreement_test.cpp.
#include <gtest/gtest.h>

#include "lib/testing/agreement.h"
#include "lib/testing/model_planning.h"

namespace s2o {
namespace {

TEST(FlexPrefillPlanner, heads_of_either_pattern_agree_with_the_cpu) {
  const Method& method = find_method("flexprefill");
  for (const char* pattern : {"stripes", "mixed"}) {
    const AttentionInput input = testing::structured_input({640, 2, 1, 128}, pattern);
    for (const double tau : {0.0, 0.1, 1.0}) {
      for (const double gamma : {0.6, 0.95}) {
        const nlohmann::ordered_json params = {{"tau", tau}, {"gamma", gamma}, {"min_budget", 200}};
        const auto planner = testing::planner_of(method, input, params);
        const testing::ModelPlan model = testing::plan_on_model(*planner, input);
        EXPECT_EQ(model.error_word, 0u);
        testing::expect_agreement(method, input, params, model.plan);
      }
    }
  }
}

}  // namespace
}  // namespace s2o
