// What every method must satisfy, run over the registry: a new method gets these by its one line
// in methods.def.
#include <gtest/gtest.h>

#include <algorithm>

#include "lib/core/error.h"
#include "lib/core/random.h"
#include "lib/testing/inputs.h"

namespace s2o {
namespace {

using testing::Shape;

class MethodContract : public ::testing::TestWithParam<const Method*> {
 protected:
  const Method& method() const { return *GetParam(); }
};

const std::vector<Shape>& contract_shapes() {
  static const std::vector<Shape> kShapes = {{1, 1, 1, 64},    {127, 4, 1, 64},  {128, 2, 2, 128},
                                             {129, 8, 1, 64},  {1000, 8, 2, 64}, {1536, 4, 4, 128},
                                             {2048, 8, 2, 128}};
  return kShapes;
}

std::string shape_name(const Shape& shape) {
  return std::to_string(shape.seqlen) + " tokens, " + std::to_string(shape.num_q_heads) + "/" +
         std::to_string(shape.num_kv_heads) + " heads of " + std::to_string(shape.head_dim);
}

TEST_P(MethodContract, full_budget_equals_dense) {
  ASSERT_TRUE(method().info().full_budget.exists);
  for (const Shape& shape : contract_shapes()) {
    const AttentionInput input = testing::structured_input(shape);
    const DenseReference reference = testing::dense_reference(input);
    const ParamSet params = testing::settings_of(method(), method().info().full_budget.params);
    const SparsePlan plan = method().plan_cpu({.input = input, .reference = reference}, params);
    check_plan(input.problem, plan);
    const testing::Executed result = testing::execute(input, plan);
    EXPECT_LE(testing::relative_l2(result.out, reference.out), 1e-5) << shape_name(shape);
    const Work work = count_work(input.problem, plan, result.stats);
    EXPECT_DOUBLE_EQ(work.total.pair_density(), 1.0) << shape_name(shape);
  }
}

TEST_P(MethodContract, default_plan_is_valid_and_deterministic) {
  for (const Shape& shape : contract_shapes()) {
    const AttentionInput input = testing::structured_input(shape);
    const DenseReference reference = testing::dense_reference(input);
    const ParamSet params(method().info().params);
    const SparsePlan plan = method().plan_cpu({.input = input, .reference = reference}, params);
    check_plan(input.problem, plan);
    const testing::Executed first = testing::execute(input, plan);
    const SparsePlan again = method().plan_cpu({.input = input, .reference = reference}, params);
    const testing::Executed second = testing::execute(input, again);
    EXPECT_EQ(first.out, second.out) << shape_name(shape);
    EXPECT_EQ(first.lse, second.lse) << shape_name(shape);
    for (const float value : first.out) ASSERT_TRUE(std::isfinite(value)) << shape_name(shape);

    const Work work = count_work(input.problem, plan, first.stats);
    EXPECT_GT(work.total.visited_pairs, 0);
    EXPECT_LE(work.total.visited_pairs, work.total.causal_pairs) << shape_name(shape);
    WorkCounts sum;
    for (const WorkCounts& head : work.per_head) sum += head;
    EXPECT_EQ(sum.executed_pairs, work.total.executed_pairs);
  }
}

// What lets a plan be made once for all layers of a model.
TEST_P(MethodContract, plan_of_the_shape_alone_is_the_plan) {
  if (method().info().reads_input) GTEST_SKIP() << "reads the input";
  const AttentionInput input = testing::structured_input({1000, 8, 2, 64});
  AttentionInput shape_only;
  shape_only.problem = input.problem;
  const DenseReference none;
  const ParamSet params(method().info().params);
  const SparsePlan plan = method().plan_cpu({.input = input, .reference = none}, params);
  const SparsePlan same = method().plan_cpu({.input = shape_only, .reference = none}, params);
  const testing::Executed expected = testing::execute(input, plan);
  EXPECT_EQ(testing::execute(input, same).out, expected.out);
}

// Changing keys and values after a row must not change the row.
TEST_P(MethodContract, output_does_not_depend_on_the_future_given_the_plan) {
  const AttentionInput input = testing::structured_input({640, 4, 2, 64});
  const DenseReference reference = testing::dense_reference(input);
  const ParamSet params(method().info().params);
  const SparsePlan plan = method().plan_cpu({.input = input, .reference = reference}, params);
  const testing::Executed before = testing::execute(input, plan);
  AttentionInput changed = input;
  constexpr std::int64_t kCut = 384;
  for (int head = 0; head < 2; ++head) {
    for (std::int64_t x = kCut; x < 640; ++x) {
      for (int i = 0; i < 64; ++i) {
        const auto index = static_cast<std::size_t>(input.problem.row_offset(head, x) + i);
        changed.k[index] = -2.0f * changed.k[index];
        changed.v[index] = 100.0f;
      }
    }
  }
  const testing::Executed after = testing::execute(changed, plan);
  // Early stops of tiles that reach over the cut may differ; rows of tiles before it may not.
  for (int head = 0; head < 4; ++head) {
    for (std::int64_t t = 0; t < kCut; ++t) {
      const auto index = static_cast<std::size_t>(input.problem.row_offset(head, t));
      for (std::size_t i = 0; i < 64; ++i) {
        ASSERT_EQ(before.out[index + i], after.out[index + i]) << "head " << head << " row " << t;
      }
    }
  }
}

TEST_P(MethodContract, knob_sweep_lowers_density_from_end_to_end) {
  const MethodInfo& info = method().info();
  if (info.knob.empty()) GTEST_SKIP() << "no knob";
  ASSERT_GE(info.knob_sweep.size(), 6u);
  const AttentionInput input = testing::structured_input({2048, 4, 2, 64});
  const DenseReference reference = testing::dense_reference(input);
  std::vector<double> densities;
  for (const double value : {info.knob_sweep.front(), info.knob_sweep.back()}) {
    ParamSet params(info.params);
    params.set(info.params, info.knob, value, info.name);
    const SparsePlan plan = method().plan_cpu({.input = input, .reference = reference}, params);
    const testing::Executed result = testing::execute(input, plan);
    densities.push_back(count_work(input.problem, plan, result.stats).total.compute_density());
  }
  EXPECT_NE(densities[0], densities[1]);
}

// Values that a config accepts for a parameter: ends of its range and some between.
std::vector<nlohmann::json> values_of(const ParamSpec& spec) {
  std::vector<nlohmann::json> values;
  switch (spec.type) {
    case ParamType::kBool:
      return {false, true};
    case ParamType::kChoice:
      return {spec.choices.begin(), spec.choices.end()};
    case ParamType::kInt:
      if (!spec.allowed.empty()) return {spec.allowed.begin(), spec.allowed.end()};
      for (const double value :
           {spec.min, spec.min + 1, 7.0, 48.0, 64.0, 128.0, 200.0, 256.0, 1e9, 0x1p62, spec.max}) {
        if (value < spec.min || value > spec.max || value > 0x1p62) continue;
        values.emplace_back(static_cast<std::int64_t>(value));
      }
      return values;
    case ParamType::kReal:
      for (const double value : {spec.min, 1e-9, 0.3, 0.999, 1e3, 1e300, spec.max}) {
        if (value >= spec.min && value <= spec.max && std::isfinite(value)) {
          values.emplace_back(value);
        }
      }
      return values;
  }
  return values;
}

// What a config accepts runs: a setting that no input can run is refused by Method::check, before
// anything is computed.
TEST_P(MethodContract, settings_that_pass_the_check_run) {
  const std::vector<ParamSpec>& specs = method().info().params;
  std::vector<ParamSet> settings(1, ParamSet(specs));
  for (const ParamSpec& spec : specs) {
    for (const nlohmann::json& value : values_of(spec)) {
      settings.emplace_back(specs).set(specs, spec.name, value, "test");
    }
  }
  const CounterRandom random(/*seed=*/3, /*stream=*/0);
  std::uint64_t draw = 0;
  for (int i = 0; i < 60 && !specs.empty(); ++i) {
    ParamSet& mixed = settings.emplace_back(specs);
    for (const ParamSpec& spec : specs) {
      const std::vector<nlohmann::json> values = values_of(spec);
      const auto pick = random.below(draw++, 2 * std::ssize(values));
      if (pick < std::ssize(values)) {
        mixed.set(specs, spec.name, values[static_cast<std::size_t>(pick)], "test");
      }
    }
  }
  const AttentionInput input = testing::structured_input({300, 4, 2, 64});
  const DenseReference reference = testing::dense_reference(input);
  int refused = 0;
  for (const ParamSet& params : settings) {
    try {
      method().check(params);
    } catch (const ConfigError&) {
      ++refused;
      EXPECT_THROW(method().plan_cpu({.input = input, .reference = reference}, params), ConfigError)
          << params.to_json();
      continue;
    }
    try {
      const SparsePlan plan = method().plan_cpu({.input = input, .reference = reference}, params);
      check_plan(input.problem, plan);
      const testing::Executed result = testing::execute(input, plan);
      EXPECT_TRUE(std::all_of(result.out.begin(), result.out.end(), [](float value) {
        return std::isfinite(value);
      })) << params.to_json();
      method().device_planner({.problem = input.problem,
                               .dtype = input.dtype,
                               .params = params,
                               .limits = {.l2_bytes = 1 << 20}});
    } catch (const std::exception& error) {
      ADD_FAILURE() << params.to_json() << ": " << error.what();
    }
  }
  EXPECT_LT(2 * refused, std::ssize(settings));
}

TEST(MethodSettings, values_that_contradict_each_other_name_their_place) {
  const auto refusal = [](const std::string& method, const char* entry) -> std::string {
    try {
      expand_settings(find_method(method), nlohmann::ordered_json::parse(entry), "here");
    } catch (const ConfigError& error) {
      return error.what();
    }
    return "";
  };
  EXPECT_EQ(refusal("xattention", R"({"stride": [8, 7]})"),
            "here.stride: found 7, expected 4, 8 or 16");
  EXPECT_EQ(refusal("mean_pooling", R"({"block_size": 48})"),
            "here.block_size: found 48, expected 16, 32, 64 or 128");
  EXPECT_EQ(refusal("pbs_attn", R"({"segment_size": [256, 200]})"),
            "here.segment_size: found 200, expected a multiple of block_size 128");
  EXPECT_EQ(refusal("s2o", R"({"segment_size": 200})"),
            "here.segment_size: found 200, expected a multiple of block_m 128");
  EXPECT_EQ(refusal("s2o_plus", R"({"segment_size": 256, "ranking": "mean"})"), "");
  EXPECT_NE(refusal("s2o_plus", R"({"segment_size": 256})"), "");
  EXPECT_NE(refusal("s2o_plus", R"({"query_guide": "prefix_mean_key"})"), "");
  EXPECT_NE(refusal("flash_prefill", R"({"compensation": "centroid"})"), "");
  EXPECT_EQ(refusal("minference", R"({"last_q": 18446744073709551615})"),
            "here.last_q: found 18446744073709551615, expected a value <= 9223372036854775807");
  EXPECT_EQ(refusal("dense", R"({"compute": "fp8", "smooth_k": [true, false]})"), "");
  EXPECT_EQ(refusal("dense", R"({"rotate_qk": false})"),
            "here.rotate_qk: found with \"compute\": \"stored\", expected \"fp8\" where it "
            "is set");
  EXPECT_EQ(refusal("s2o", R"({"compute": "int8"})"),
            "here.compute: unknown value 'int8'; expected one of: stored, fp8");
}

std::string method_name(const ::testing::TestParamInfo<const Method*>& method) {
  return method.param->info().name;
}

INSTANTIATE_TEST_SUITE_P(all, MethodContract, ::testing::ValuesIn(all_methods()), method_name);

TEST(MethodRegistry, unknown_name_suggests_the_nearest) {
  try {
    find_method("streaming_lm");
    FAIL() << "no error";
  } catch (const ConfigError& error) {
    EXPECT_NE(std::string(error.what()).find("did you mean 'streaming_llm'"), std::string::npos);
  }
}

}  // namespace
}  // namespace s2o
