// What planners say that planning costs at least: hand counts of two methods, and what must hold of
// all of them.
#include <gtest/gtest.h>

#include "lib/core/error.h"
#include "lib/methods/method.h"

namespace s2o {
namespace {

constexpr double kHeadDim = 128.0;
constexpr double kQueryHeads = 32.0;
constexpr double kKvHeads = 8.0;
// A token and query head of head_dim 128, four query heads to a KV head (results/planning.md).
constexpr std::int64_t kWorkspaceBytesPerToken = 864;

// Null for a method without a device planner.
std::unique_ptr<Planner> planner_of(const Method& method, const nlohmann::ordered_json& params,
                                    std::int64_t seqlen, int num_q_heads, int num_kv_heads) {
  ParamSet set(method.info().params);
  for (const auto& [name, value] : params.items()) {
    set.set(method.info().params, name, value, "test");
  }
  return method.device_planner({.problem = {.seqlen = seqlen,
                                            .num_q_heads = num_q_heads,
                                            .num_kv_heads = num_kv_heads,
                                            .head_dim = 128,
                                            .softmax_scale = 0.088388f},
                                .dtype = StorageDType::kBF16,
                                .params = set,
                                .limits = {.l2_bytes = std::int64_t{50} << 20}});
}

std::optional<PlanningCost> cost_of(const Method& method, const nlohmann::ordered_json& params,
                                    std::int64_t seqlen) {
  const auto planner = planner_of(method, params, seqlen, 32, 8);
  if (planner == nullptr) return std::nullopt;
  return planner->cost();
}

TEST(PlanningCost, s2o_is_means_scores_and_orders) {
  const double seqlen = 131072.0;
  const double segments = 128.0;
  const auto cost = cost_of(find_method("s2o"), {{"segment_size", 1024}, {"tau", 0.0}}, 131072);
  ASSERT_TRUE(cost);
  const double scores = kQueryHeads * 1024.0 * segments * (segments - 1.0) / 2.0;
  EXPECT_NEAR(cost->flops / (2.0 * scores * kHeadDim + 2.0 * kQueryHeads * seqlen * kHeadDim), 1.0,
              1e-6);
  // Queries and keys in; scores as 16 bits out and in; orders as 32 bits out.
  EXPECT_NEAR(
      cost->bytes / (2.0 * seqlen * kHeadDim * (kQueryHeads + kKvHeads) + (4.0 + 4.0) * scores),
      1.0, 1e-3);
}

TEST(PlanningCost, xattention_at_stride_8_is_a_sixteenth_of_dense) {
  const double seqlen = 32768.0;
  const auto cost = cost_of(find_method("xattention"), {{"stride", 8}}, 32768);
  ASSERT_TRUE(cost);
  const double dense = 4.0 * kHeadDim * kQueryHeads * seqlen * seqlen / 2.0;
  EXPECT_NEAR(cost->flops / dense, 1.0 / 16.0, 1e-6);
}

TEST(PlanningCost, of_every_method_reads_the_keys_and_stays_below_dense_attention) {
  int counted = 0;
  for (const Method* method : all_methods()) {
    const auto cost = cost_of(*method, nlohmann::ordered_json::object(), 32768);
    if (!cost || !method->info().reads_input) continue;
    const std::string& name = method->info().name;
    const double seqlen = 32768.0;
    EXPECT_GE(cost->bytes, 2.0 * kKvHeads * seqlen * kHeadDim) << name;
    EXPECT_GT(cost->flops, 0.0) << name;
    EXPECT_LT(cost->flops, 4.0 * kHeadDim * kQueryHeads * seqlen * seqlen / 2.0) << name;
    const auto twice = cost_of(*method, nlohmann::ordered_json::object(), 65536);
    // Between linear and quadratic, up to short segments at the start.
    EXPECT_GE(twice->flops, 1.99 * cost->flops) << name;
    EXPECT_LE(twice->flops, 4.1 * cost->flops) << name;
    EXPECT_GE(twice->bytes, 1.99 * cost->bytes) << name;
    EXPECT_LE(twice->bytes, 4.1 * cost->bytes) << name;
    ++counted;
  }
  EXPECT_GE(counted, 10);
}

// Memory grows with the sequence, not with its square, up to where a method says that it ends.
TEST(PlanningCost, workspace_is_at_most_some_bytes_a_token_and_query_head) {
  for (const Method* method : all_methods()) {
    for (const std::int64_t seqlen : {32768, 131072, 524288, 1048576, 2097152}) {
      std::unique_ptr<Planner> planner;
      try {
        planner = planner_of(*method, nlohmann::ordered_json::object(), seqlen, 4, 1);
      } catch (const UnsupportedError&) {
        EXPECT_GT(seqlen, 1048576) << method->info().name;
        continue;
      }
      if (planner == nullptr) continue;
      EXPECT_LE(planner->workspace().bytes(), kWorkspaceBytesPerToken * seqlen * 4)
          << method->info().name << " at " << seqlen;
    }
  }
}

}  // namespace
}  // namespace s2o
