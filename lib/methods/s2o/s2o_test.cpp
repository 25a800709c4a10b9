#include <gtest/gtest.h>

#include <algorithm>
#include <span>
#include <tuple>
#include <utility>

#include "kernels/attention/kernel_choice.h"
#include "lib/core/error.h"
#include "lib/testing/inputs.h"

namespace s2o {
namespace {

using testing::Shape;

double error_at(const AttentionInput& input, const DenseReference& reference, const char* method,
                const nlohmann::ordered_json& params) {
  const SparsePlan plan = find_method(method).plan_cpu(
      {.input = input, .reference = reference}, testing::settings_of(find_method(method), params));
  return testing::relative_l2(testing::execute(input, plan).out, reference.out);
}

// THE sanity test: tau = 0 never stops, so S2O is dense attention in another order.
class S2oTauZero : public ::testing::TestWithParam<std::tuple<Shape, int>> {};

TEST_P(S2oTauZero, equals_dense_in_fp32) {
  const auto [shape, segment_size] = GetParam();
  const AttentionInput input = testing::structured_input(shape, "mixed", StorageDType::kF32);
  const DenseReference reference = testing::dense_reference(input);
  for (const char* guide : {"none", "prefix_mean_key"}) {
    EXPECT_LE(error_at(input, reference, "s2o",
                       {{"tau", 0.0}, {"segment_size", segment_size}, {"query_guide", guide}}),
              1e-5)
        << guide;
    EXPECT_LE(error_at(input, reference, "s2o_plus",
                       {{"tau", 0.0},
                        {"ranking", "mean"},
                        {"segment_size", segment_size},
                        {"query_guide", guide},
                        {"compensation", "blocks_variance"}}),
              1e-5)
        << guide;
  }
}

INSTANTIATE_TEST_SUITE_P(
    small, S2oTauZero,
    ::testing::Combine(::testing::Values(Shape{1, 4, 4, 128}, Shape{127, 4, 1, 64},
                                         Shape{128, 8, 1, 128}, Shape{129, 8, 8, 64},
                                         Shape{1000, 8, 2, 128}),
                       ::testing::Values(128, 384, 1024)));
INSTANTIATE_TEST_SUITE_P(long_4096, S2oTauZero,
                         ::testing::Combine(::testing::Values(Shape{4096, 4, 1, 128}),
                                            ::testing::Values(256, 1024)));
INSTANTIATE_TEST_SUITE_P(long_5000, S2oTauZero,
                         ::testing::Combine(::testing::Values(Shape{5000, 4, 1, 64}),
                                            ::testing::Values(384, 1024)));

TEST(S2o, plus_with_everything_off_is_s2o) {
  const AttentionInput input = testing::structured_input({1000, 4, 2, 64});
  const DenseReference reference = testing::dense_reference(input);
  const nlohmann::ordered_json shared = {{"tau", 0.05}, {"segment_size", 256}};
  nlohmann::ordered_json plus = shared;
  plus.update({{"ranking", "mean"}, {"local_window", 0}, {"compensation", "none"}});
  const PlanContext context{.input = input, .reference = reference};
  const Method& s2o = find_method("s2o");
  const Method& s2o_plus = find_method("s2o_plus");
  const auto a = testing::execute(input, s2o.plan_cpu(context, testing::settings_of(s2o, shared)));
  const auto b =
      testing::execute(input, s2o_plus.plan_cpu(context, testing::settings_of(s2o_plus, plus)));
  EXPECT_EQ(a.out, b.out);
}

// Heads with a tau each in one plan are those of plans with one tau for all.
TEST(S2o, heads_with_a_tau_each_are_those_of_plans_with_one) {
  const AttentionInput input = testing::structured_input({1500, 4, 2, 64});
  const DenseReference reference = testing::dense_reference(input);
  const std::vector<double> taus = {0.2, 0.0, 0.01, 0.0005};
  const std::vector<std::pair<const char*, nlohmann::ordered_json>> cases = {
      {"s2o", {{"segment_size", 256}}},
      {"s2o", {{"key_order_sharing", "kv_head"}, {"query_guide", "prefix_mean_key"}}},
      {"s2o_plus", nlohmann::ordered_json::object()},
      {"s2o_plus", {{"ranking", "mean"}, {"query_guide", "prefix_mean_key"}}}};
  for (const auto& [name, params] : cases) {
    SCOPED_TRACE(std::string(name) + " " + params.dump());
    const Method& method = find_method(name);
    std::vector<ParamSet> heads;
    for (const double tau : taus) {
      nlohmann::ordered_json own = params;
      own["tau"] = tau;
      if (method.info().params_by_head.size() > 1) own["floor_per_tau"] = tau / 2.0;
      heads.push_back(testing::settings_of(method, own));
    }
    const auto run = [&](const ParamSet& all, std::span<const ParamSet> head_params) {
      const SparsePlan plan = method.plan_cpu(
          {.input = input, .reference = reference, .head_params = head_params}, all);
      check_plan(input.problem, plan);
      return testing::execute(input, plan);
    };
    const auto together = run(heads[3], heads);
    for (int head = 0; head < 4; ++head) {
      const auto alone = run(heads[static_cast<std::size_t>(head)], {});
      const auto begin = input.problem.row_offset(head, 0);
      const auto end = input.problem.row_offset(head + 1, 0);
      const std::vector<float> found(together.out.begin() + begin, together.out.begin() + end);
      const std::vector<float> expected(alone.out.begin() + begin, alone.out.begin() + end);
      // Without a stop the reference takes other chunks.
      const bool may_stop = taus[static_cast<std::size_t>(head)] > 0.0;
      EXPECT_LE(testing::relative_l2(found, expected), may_stop ? 0.0 : 1e-6) << "head " << head;
    }
  }
}

// One vertical stripe: keys that every query wants come first, so one step holds the mass.
TEST(S2o, visits_vertical_stripe_first) {
  Problem problem{.seqlen = 1024, .num_q_heads = 1, .num_kv_heads = 1, .head_dim = 64};
  AttentionInput input;
  input.problem = problem;
  input.q.assign(1024 * 64, 0.0f);
  input.k.assign(1024 * 64, 0.0f);
  input.v.assign(1024 * 64, 1.0f);
  for (std::size_t t = 0; t < 1024; ++t) input.q[t * 64] = 8.0f;
  const std::vector<std::int32_t> stripe = {3, 77, 78, 200, 391};
  for (const std::int32_t x : stripe) input.k[static_cast<std::size_t>(x) * 64] = 10.0f;
  validate_attention_input(input, false);
  const DenseReference reference = testing::dense_reference(input);
  const SparsePlan plan = find_method("s2o").plan_cpu(
      {.input = input, .reference = reference},
      testing::settings_of(find_method("s2o"), {{"tau", 0.01}, {"segment_size", 512}}));
  // Last tile: own segment, then the history; the stripe leads, ties by lower index follow.
  const PlanPass& pass = plan.passes[0];
  const PlanItem& history = pass.items.back();
  ASSERT_EQ(history.kind, ItemKind::kGather);
  ASSERT_EQ(history.count, 512);
  const std::vector<std::int32_t> order(pass.gather_indices.begin() + history.begin,
                                        pass.gather_indices.begin() + history.begin + 8);
  EXPECT_EQ(order, (std::vector<std::int32_t>{3, 77, 78, 200, 391, 0, 1, 2}));
  const auto result = testing::execute(input, plan);
  EXPECT_EQ(result.stats.back().stop_steps, 2);  // the second step adds nothing and is counted
}

// Four steps of the ranked history must beat as many keys of a window before the segment.
TEST(S2o, ranked_history_beats_recent_history) {
  const AttentionInput input = testing::structured_input({4096, 2, 1, 64}, "stripes");
  const DenseReference reference = testing::dense_reference(input);
  const double ranked =
      error_at(input, reference, "s2o", {{"tau", 1.0}, {"min_steps", 4}, {"segment_size", 256}});
  const double recent =
      error_at(input, reference, "streaming_llm", {{"sink", 0}, {"window", 256 + 4 * 128}});
  EXPECT_LT(2.0 * ranked, recent);
}

TEST(S2o, compensation_lowers_error_at_equal_steps) {
  const AttentionInput input = testing::structured_input({2048, 4, 1, 64});
  const DenseReference reference = testing::dense_reference(input);
  const auto error = [&](const char* compensation) {
    return error_at(
        input, reference, "s2o_plus",
        {{"tau", 1.0}, {"min_steps", 2}, {"ranking", "mean"}, {"compensation", compensation}});
  };
  EXPECT_LT(error("centroid"), error("none"));
  EXPECT_LT(error("blocks"), error("none"));
}

// Kernels have no folded columns at 96 and 256, and a default must run.
TEST(S2o, defaults_of_s2o_plus_run_at_every_head_dim) {
  for (const int head_dim : {64, 96, 128, 256}) {
    const AttentionInput input = testing::structured_input({300, 1, 1, head_dim});
    const SparsePlan plan = find_method("s2o_plus")
                                .plan_cpu({.input = input, .reference = {}},
                                          testing::settings_of(find_method("s2o_plus"), {}));
    const PlanPointers pointers(plan);
    EXPECT_NO_THROW(choose_tile(kernel_with_head_dim(AttentionKernel::kSm90, head_dim),
                                input.problem, pointers.view(), /*fp32_accuracy=*/false));
  }
}

TEST(S2o, kv_head_sharing_keeps_one_order_per_group) {
  const AttentionInput input = testing::structured_input({512, 8, 2, 64});
  const DenseReference reference = testing::dense_reference(input);
  const auto indices = [&](const char* sharing) {
    return find_method("s2o")
        .plan_cpu({.input = input, .reference = reference},
                  testing::settings_of(find_method("s2o"),
                                       {{"segment_size", 128}, {"key_order_sharing", sharing}}))
        .passes[0]
        .gather_indices.size();
  };
  EXPECT_EQ(indices("query_head"), 4 * indices("kv_head"));
}

TEST(S2o, segment_size_must_fit_block_m) {
  const AttentionInput input = testing::structured_input({256, 1, 1, 64});
  DenseReference none;
  EXPECT_THROW(find_method("s2o").plan_cpu(
                   {.input = input, .reference = none},
                   testing::settings_of(find_method("s2o"), {{"segment_size", 200}})),
               ConfigError);
  EXPECT_THROW(testing::settings_of(find_method("s2o"), {{"tau", -0.1}}), ConfigError);
}

// Oracles are ceilings: at equal work no method of their class has less error.
TEST(Oracles, have_less_error_than_real_methods_at_equal_density) {
  const AttentionInput input = testing::structured_input({2048, 4, 2, 64});
  const DenseReference reference = testing::dense_reference(input);
  const auto run = [&](const char* method, const nlohmann::ordered_json& params) {
    const Method& m = find_method(method);
    const SparsePlan plan =
        m.plan_cpu({.input = input, .reference = reference}, testing::settings_of(m, params));
    const auto result = testing::execute(input, plan);
    return std::pair(count_work(input.problem, plan, result.stats).total.compute_density(),
                     testing::relative_l2(result.out, reference.out));
  };
  const auto [window_density, window_error] = run("streaming_llm", {{"window", 512}});
  const auto [block_density, block_error] = run("oracle_block", {{"density", window_density}});
  EXPECT_NEAR(block_density, window_density, 0.01);
  EXPECT_LT(block_error, window_error);
  const auto [s2o_density, s2o_error] = run("s2o", {{"tau", 0.05}, {"segment_size", 128}});
  // The oracle's budget is of the history; its 16 diagonal blocks of 136 come on top.
  const double history = std::floor(100.0 * (s2o_density * 136.0 - 16.0) / 120.0) / 100.0;
  const auto [token_density, token_error] = run("oracle_token", {{"density", history}});
  EXPECT_LE(token_density, s2o_density);
  EXPECT_LT(token_error, s2o_error);
}

}  // namespace
}  // namespace s2o
