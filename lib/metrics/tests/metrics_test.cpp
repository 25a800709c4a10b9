#include <gtest/gtest.h>

#include <cmath>
#include <map>
#include <set>

#include "lib/metrics/metric.h"

namespace s2o {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

// Two query heads, three tokens, head_dim 2, with a dense reference of simple numbers.
struct Sample {
  AttentionInput input;
  DenseReference reference;
  std::vector<float> out;
  std::vector<float> lse;
  Work work;
  Timings timings;
  std::int64_t workspace_bytes = 0;
  std::optional<PlanningCost> planning_cost;

  Sample() {
    input.problem = {.seqlen = 3, .num_q_heads = 2, .num_kv_heads = 1, .head_dim = 2};
    reference.out = {1, 2, 3, 4, 5, 6, -1, -2, -3, -4, -5, -6};
    reference.lse = {0.0f, 1.0f, 2.0f, 0.5f, 1.5f, 2.5f};
    out = reference.out;
    lse = reference.lse;
    work.per_head = {
        {.executed_pairs = 6, .dense_pairs = 12, .visited_pairs = 3, .causal_pairs = 6},
        {.executed_pairs = 3, .dense_pairs = 12, .visited_pairs = 2, .causal_pairs = 6}};
    for (const WorkCounts& head : work.per_head) work.total += head;
  }

  std::map<std::string, MetricValue> compute() const {
    const std::vector<ErrorSums> error_sums =
        error_sums_ref(input.problem.num_q_heads, input.problem.seqlen * input.problem.head_dim,
                       out.data(), reference.out.data());
    const MetricContext context = {input, reference, error_sums,      lse,
                                   work,  timings,   workspace_bytes, planning_cost};
    std::map<std::string, MetricValue> values;
    for (const Metric* metric : all_metrics()) {
      const std::vector<MetricValue> computed = metric->compute(context);
      EXPECT_EQ(computed.size(), metric->columns.size());
      for (std::size_t i = 0; i < computed.size(); ++i) {
        values[metric->columns[i].name] = computed[i];
      }
    }
    return values;
  }
};

TEST(metrics, names_are_unique_and_per_head_values_have_one_entry_per_head) {
  std::set<std::string> names;
  const auto values = Sample().compute();
  for (const Metric* metric : all_metrics()) {
    for (const MetricColumn& column : metric->columns) {
      EXPECT_TRUE(names.insert(column.name).second) << column.name;
      EXPECT_FALSE(column.help.empty()) << column.name;
      EXPECT_EQ(values.at(column.name).per_head.size(), column.per_head ? 2u : 0u) << column.name;
    }
  }
}

TEST(metrics, identical_outputs_have_no_error) {
  const auto values = Sample().compute();
  EXPECT_EQ(values.at("mse").value, 0.0);
  EXPECT_EQ(values.at("relative_l2").value, 0.0);
  EXPECT_EQ(values.at("max_abs_error").value, 0.0);
  EXPECT_NEAR(values.at("cosine").value.value(), 1.0, 1e-12);
  EXPECT_EQ(values.at("mass_recall").value, 1.0);
  EXPECT_EQ(values.at("lse_error").value, 0.0);
}

TEST(metrics, zero_output_has_relative_l2_of_one) {
  Sample sample;
  sample.out.assign(sample.out.size(), 0.0f);
  sample.lse.assign(sample.lse.size(), -kInfinity);
  const auto values = sample.compute();
  EXPECT_NEAR(values.at("relative_l2").value.value(), 1.0, 1e-12);
  EXPECT_NEAR(values.at("mse").value.value(), 2.0 * 91.0 / 12.0, 1e-12);
  EXPECT_EQ(values.at("max_abs_error").value, 6.0);
  EXPECT_FALSE(values.at("cosine").value.has_value());
  EXPECT_EQ(values.at("mass_recall").value, 0.0);
  EXPECT_FALSE(values.at("lse_error").value.has_value());
}

TEST(metrics, error_of_one_value_is_counted_in_its_head) {
  Sample sample;
  sample.out[3] += 0.5f;  // head 0, token 1
  const auto values = sample.compute();
  EXPECT_DOUBLE_EQ(values.at("mse").value.value(), 0.25 / 12.0);
  EXPECT_DOUBLE_EQ(values.at("mse").per_head[0], 0.25 / 6.0);
  EXPECT_EQ(values.at("mse").per_head[1], 0.0);
  EXPECT_DOUBLE_EQ(values.at("relative_l2").value.value(), std::sqrt(0.25 / 182.0));
  EXPECT_DOUBLE_EQ(values.at("relative_l2").per_head[0], std::sqrt(0.25 / 91.0));
  EXPECT_EQ(values.at("max_abs_error").value, 0.5);
  EXPECT_DOUBLE_EQ(values.at("reference_mean_square").per_head[1], 91.0 / 6.0);
}

TEST(metrics, nan_in_the_output_reaches_every_error) {
  for (const std::size_t place : {0u, 5u, 11u}) {
    Sample sample;
    sample.out[place] = std::numeric_limits<float>::quiet_NaN();
    const auto values = sample.compute();
    for (const char* name : {"mse", "relative_l2", "max_abs_error", "cosine"}) {
      EXPECT_TRUE(std::isnan(values.at(name).value.value())) << name << " " << place;
    }
  }
}

TEST(metrics, zero_reference_makes_the_ratio_null_unless_the_output_is_zero_too) {
  Sample sample;
  sample.reference.out.assign(12, 0.0f);
  EXPECT_FALSE(sample.compute().at("relative_l2").value.has_value());
  sample.out.assign(12, 0.0f);
  EXPECT_EQ(sample.compute().at("relative_l2").value, 0.0);
}

TEST(metrics, mass_recall_is_the_mean_over_rows) {
  Sample sample;
  sample.lse[0] = sample.reference.lse[0] + std::log(0.5f);
  sample.lse[4] = -kInfinity;
  const auto values = sample.compute();
  EXPECT_NEAR(values.at("mass_recall").value.value(), (0.5 + 1 + 1 + 1 + 0 + 1) / 6.0, 1e-7);
  EXPECT_NEAR(values.at("mass_recall").per_head[0], 2.5 / 3.0, 1e-7);
  EXPECT_NEAR(values.at("mass_recall").per_head[1], 2.0 / 3.0, 1e-7);
  // The empty row has no lse to compare.
  EXPECT_NEAR(values.at("lse_error").value.value(), std::log(2.0) / 5.0, 1e-7);
}

TEST(metrics, densities_come_from_the_work) {
  const auto values = Sample().compute();
  EXPECT_DOUBLE_EQ(values.at("compute_density").value.value(), 9.0 / 24.0);
  EXPECT_DOUBLE_EQ(values.at("sparsity").value.value(), 15.0 / 24.0);
  EXPECT_DOUBLE_EQ(values.at("pair_density").value.value(), 5.0 / 12.0);
  EXPECT_DOUBLE_EQ(values.at("compute_density").per_head[1], 0.25);
}

TEST(metrics, unmeasured_times_are_null) {
  const auto values = Sample().compute();
  for (const char* name :
       {"plan_latency_ms", "attention_latency_ms", "total_latency_ms", "latency_p10_ms",
        "latency_p90_ms", "speedup_vs_dense", "effective_tflops"}) {
    EXPECT_FALSE(values.at(name).value.has_value()) << name;
  }
}

TEST(metrics, times_are_medians_and_the_total_is_per_repeat) {
  Sample sample;
  sample.timings = {
      .plan_ms = {1.0, 3.0, 2.0}, .attention_ms = {10.0, 20.0, 40.0}, .dense_attention_ms = 46.0};
  const auto values = sample.compute();
  EXPECT_EQ(values.at("plan_latency_ms").value, 2.0);
  EXPECT_EQ(values.at("attention_latency_ms").value, 20.0);
  EXPECT_EQ(values.at("total_latency_ms").value, 23.0);
  EXPECT_NEAR(values.at("latency_p10_ms").value.value(), 11.0 + 0.2 * 12.0, 1e-12);
  EXPECT_NEAR(values.at("latency_p90_ms").value.value(), 23.0 + 0.8 * 19.0, 1e-12);
  EXPECT_EQ(values.at("speedup_vs_dense").value, 2.0);
  // 9 pairs, 4 * 2 FLOPs each, 20 ms.
  EXPECT_NEAR(values.at("effective_tflops").value.value(), 72.0 / 20e-3 / 1e12, 1e-20);
}

TEST(metrics, planning_timed_less_often_is_part_of_every_total) {
  Sample sample;
  sample.timings = {.plan_ms = {5.0}, .attention_ms = {10.0, 20.0, 40.0}};
  const auto values = sample.compute();
  EXPECT_EQ(values.at("plan_latency_ms").value, 5.0);
  EXPECT_EQ(values.at("total_latency_ms").value, 25.0);
  EXPECT_TRUE(values.at("latency_p90_ms").value.has_value());
}

TEST(metrics, a_single_repeat_has_no_spread_and_an_oracle_no_total) {
  Sample sample;
  sample.timings = {.plan_ms = {1.0}, .attention_ms = {2.0}, .dense_attention_ms = 6.0};
  EXPECT_EQ(sample.compute().at("total_latency_ms").value, 3.0);
  EXPECT_FALSE(sample.compute().at("latency_p10_ms").value.has_value());
  sample.timings.plan_ms.clear();
  const auto values = sample.compute();
  EXPECT_EQ(values.at("attention_latency_ms").value, 2.0);
  EXPECT_FALSE(values.at("total_latency_ms").value.has_value());
  EXPECT_FALSE(values.at("speedup_vs_dense").value.has_value());
}

TEST(metrics, workspace_is_passed_on) {
  Sample sample;
  sample.workspace_bytes = 1234;
  EXPECT_EQ(sample.compute().at("peak_workspace_bytes").value, 1234.0);
}

TEST(metrics, cost_of_planning_is_that_of_a_planner_or_null) {
  Sample sample;
  EXPECT_FALSE(sample.compute().at("plan_flops").value);
  EXPECT_FALSE(sample.compute().at("plan_bytes").value);
  sample.planning_cost = PlanningCost{.flops = 2e9, .bytes = 3e6};
  EXPECT_EQ(sample.compute().at("plan_flops").value, 2e9);
  EXPECT_EQ(sample.compute().at("plan_bytes").value, 3e6);
}

}  // namespace
}  // namespace s2o
