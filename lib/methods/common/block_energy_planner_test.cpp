// Planners by energy of blocks on the CPU model of a GPU: what the agreement of every method
// (agreement_test.cpp) does not reach.
#include <gtest/gtest.h>

#include <limits>

#include "lib/testing/agreement.h"
#include "lib/testing/model_planning.h"

namespace s2o {
namespace {

using nlohmann::ordered_json;
using testing::structured_input;

constexpr PlanningVariant kVariants[] = {PlanningVariant::kSm80, PlanningVariant::kSm90};

void expect_near(const char* name, const AttentionInput& input, const ordered_json& params) {
  const Method& method = find_method(name);
  for (const PlanningVariant variant : kVariants) {
    const auto planner = testing::planner_of(method, input, params);
    ASSERT_NE(planner, nullptr);
    const testing::ModelPlan model = testing::plan_on_model(*planner, input, 1, variant);
    EXPECT_EQ(model.error_word, 0u);
    testing::expect_agreement(method, input, params, model.plan);
  }
}

// Three query heads a KV head: the rows of a tile begin at any head, and see other blocks.
TEST(BlockEnergyPlanner, packed_rows_may_fill_no_whole_positions) {
  const AttentionInput input = structured_input({1500, 3, 1, 128}, "mixed", StorageDType::kF16);
  for (const double alpha : {0.9, 0.98}) {
    expect_near("flash_prefill", input,
                {{"alpha", alpha}, {"sink_blocks", 1}, {"window_blocks", 2}, {"last_tiles", 3}});
  }
}

// More than two steps of 64 mean keys; the ring of the products wraps. With louder keys later, an
// energy is far beyond what the first keys of the tile lead to expect.
TEST(BlockEnergyPlanner, long_tiles_agree_whatever_their_references) {
  for (const float factor : {1.0f, 64.0f}) {  // exact in 16 bits
    AttentionInput input = structured_input({18000, 1, 1, 64});
    for (std::size_t i = std::size_t{70} * 128 * 64; i < input.k.size(); ++i) input.k[i] *= factor;
    expect_near("flash_prefill", input,
                {{"version", "v1"}, {"alpha", 0.8}, {"window_blocks", 2}, {"last_tiles", 3}});
    expect_near("rbs", input, {{"alpha_base", 0.9}, {"alpha_rescue", 0.8}, {"window_blocks", 2}});
  }
}

TEST(BlockEnergyPlanner, logits_that_are_not_finite_name_their_tile) {
  constexpr float kHuge = 3e38f;
  for (const float value : {std::numeric_limits<float>::quiet_NaN(), kHuge, -kHuge}) {
    AttentionInput input = structured_input({1200, 2, 1, 64});
    input.q[static_cast<std::size_t>((1200 + 700) * 64)] = value;
    for (std::size_t i = 0; i < 128; ++i) input.k[i * 64] = 10.0f;  // the first block
    for (const PlanningVariant variant : kVariants) {
      const auto packed =
          testing::planner_of(find_method("flash_prefill"), input, {{"last_tiles", 0}});
      const std::uint32_t bad = testing::plan_on_model(*packed, input, 1, variant).error_word;
      EXPECT_EQ(static_cast<std::int64_t>(~bad), 700 * 2 / 128) << value;
      for (const bool rescue : {true, false}) {
        const auto planner =
            testing::planner_of(find_method("rbs"), input, {{"rescue", rescue}, {"last_tiles", 0}});
        const std::uint32_t bad_row =
            testing::plan_on_model(*planner, input, 1, variant).error_word;
        EXPECT_EQ(planner->row_name(static_cast<std::int64_t>(~bad_row)),
                  "query head 1, query tile 5")
            << value;
      }
    }
  }
}

}  // namespace
}  // namespace s2o
