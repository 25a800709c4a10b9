#include "lib/eval/evaluator.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <new>
#include <set>

#include "lib/core/error.h"
#include "lib/eval/backend_cpu.h"
#include "lib/metrics/metric.h"
#include "lib/testing/files.h"

namespace s2o {
namespace {

using Json = nlohmann::ordered_json;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

// Dense attention, or a failure of the given kind.
class FailingMethod final : public Method {
 public:
  explicit FailingMethod(std::function<void()> failure) : failure_(std::move(failure)) {
    info_.name = "failing";
  }
  const MethodInfo& info() const override { return info_; }
  SparsePlan plan_cpu(const PlanContext& context, const ParamSet& params) const override {
    failure_();
    return find_method("dense").plan_cpu(context, params);
  }

 private:
  std::function<void()> failure_;
  MethodInfo info_;
};

// The CPU backend, with one output value overwritten after each run but the first (the reference).
class SpoilingBackend : public Backend {
 public:
  SpoilingBackend(std::size_t place, float value) : place_(place), value_(value) {}
  std::string name() const override { return "cpu"; }
  std::string kernel() const override { return "spoiled"; }
  DeviceChoice device() const override { return inner_->device(); }
  Json context() override { return inner_->context(); }
  int outputs_on_host() const override { return 3; }
  void set_input(const AttentionInput& input) override {
    problem_ = input.problem;
    inner_->set_input(input);
  }
  void set_heads(const std::optional<HeadRange>& q_heads) override { inner_->set_heads(q_heads); }
  void run_reference(const SparsePlan& plan, const TimingConfig& timing,
                     AttentionRun& result) override {
    inner_->run_reference(plan, timing, result);
    out_ = inner_->out();
  }
  const DenseReference& reference() const override { return inner_->reference(); }
  void set_compute(const std::optional<QuantiseRule>& rule) override { inner_->set_compute(rule); }
  void run(const SparsePlan& plan, const TimingConfig& timing, AttentionRun& result) override {
    inner_->run(plan, timing, result);
    out_ = inner_->out();
    out_[place_] = value_;
  }
  std::vector<ErrorSums> error_sums() override {
    return error_sums_ref(problem_.num_q_heads, problem_.seqlen * problem_.head_dim, out_.data(),
                          reference().out.data());
  }
  const std::vector<float>& out() override { return out_; }

 private:
  Problem problem_;
  std::vector<float> out_;
  std::unique_ptr<Backend> inner_ = make_cpu_backend();
  std::size_t place_;
  float value_;
};

// Plans with the method's CPU code, in the place of a device.
class PlanningBackend final : public SpoilingBackend {
 public:
  PlanningBackend() : SpoilingBackend(0, 0.0f) {}
  void set_input(const AttentionInput& input) override {
    input_ = &input;
    planned_ = input;
    SpoilingBackend::set_input(input);
  }
  void set_heads(const std::optional<HeadRange>& q_heads) override {
    planned_ = q_heads ? head_slice(*input_, *q_heads) : *input_;
    SpoilingBackend::set_heads(q_heads);
  }
  std::optional<DevicePlanning> plan_and_run(const Method& method, const ParamSet& params,
                                             std::span<const ParamSet> head_params,
                                             const TimingConfig& timing, bool /*fetch_tokens*/,
                                             AttentionRun& result) override {
    DevicePlanning planning{.plan = method.plan_cpu({planned_, reference(), head_params}, params),
                            .plan_ms = {1.0},
                            .cost = {.flops = 5e9, .bytes = 7e6}};
    run(planning.plan, timing, result);
    return planning;
  }

 private:
  const AttentionInput* input_ = nullptr;
  AttentionInput planned_;  // of the heads at hand
};

struct RecordingSink final : EvalSink {
  std::set<std::size_t> done;  // reported as finished earlier
  std::vector<std::size_t> cells;
  std::vector<ResultRow> rows;
  std::vector<std::size_t> output_sizes;

  bool has_row(std::size_t cell) const override { return done.contains(cell); }
  void start(std::size_t, const std::string&) override {}
  void add(std::size_t cell, const ResultRow& row, const std::vector<float>& out) override {
    cells.push_back(cell);
    rows.push_back(row);
    output_sizes.push_back(out.size());
  }
};

RunConfig two_inputs() {
  return parse_run_config(Json::parse(R"({
    "dtype": "fp32",
    "inputs": [{"source": "synthetic", "pattern": "stripes", "seqlen": [200, 600],
                "num_q_heads": 2, "num_kv_heads": 1, "head_dim": 32}],
    "methods": [{"name": "dense"}, {"name": "s2o", "segment_size": 128, "tau": [0.0, 0.5]}]})"),
                          "test.json");
}

void add_failing_method(EvalCells& cells, const Method& method) {
  cells.settings.insert(cells.settings.begin() + 1, MethodSetting{.method = &method});
}

TEST(expand_cells, order_is_inputs_then_methods_then_sweep) {
  const EvalCells cells = expand_cells(two_inputs());
  ASSERT_EQ(cells.size(), 6u);
  EXPECT_EQ(cells.input(2).seqlen, 200);
  EXPECT_EQ(cells.input(3).seqlen, 600);
  EXPECT_EQ(cells.setting(3).method->info().name, "dense");
  EXPECT_EQ(cells.setting(5).params.get_real("tau"), 0.5);
}

TEST(expand_cells, resolved_config_has_every_parameter_in_the_given_order) {
  const EvalCells cells = expand_cells(two_inputs());
  const Json& entry = cells.config.methods[1];
  EXPECT_EQ(entry.size(), find_method("s2o").info().params.size() + 1);
  EXPECT_EQ(std::next(entry.begin(), 1).key(), "segment_size");
  EXPECT_EQ(std::next(entry.begin(), 2).key(), "tau");
  EXPECT_EQ(entry["tau"], Json({0.0, 0.5}));
  // What results carry gives the same run.
  EXPECT_EQ(expand_cells(cells.config).config.methods, cells.config.methods);
}

std::vector<std::string> input_names(const char* inputs) {
  RunConfig config = two_inputs();
  config.inputs = Json::parse(inputs);
  std::vector<std::string> names;
  for (const EvalCells cells = expand_cells(config); const InputCell& input : cells.inputs) {
    names.push_back(input.name);
  }
  return names;
}

TEST(expand_cells, inputs_of_one_name_get_longer_ones) {
  EXPECT_THAT(input_names(R"([{"source": "synthetic", "pattern": "stripes", "strength": [2, 5]}])"),
              ElementsAre("synthetic/stripes strength=2.0", "synthetic/stripes strength=5.0"));
  EXPECT_THAT(input_names(R"([{"source": "synthetic", "num_q_heads": 4, "num_kv_heads": 4},
                              {"source": "synthetic", "num_q_heads": 8, "num_kv_heads": 4}])"),
              ElementsAre("synthetic/mixed num_q_heads=4", "synthetic/mixed num_q_heads=8"));
  EXPECT_THAT(input_names(R"([{"source": "synthetic", "seqlen": [256, 512], "name": "mine"}])"),
              ElementsAre("mine", "mine"));
}

TEST(expand_cells, a_setting_twice_is_an_error) {
  const auto refusal = [](const char* methods) {
    RunConfig config = two_inputs();
    config.methods = Json::parse(methods);
    return testing_support::message_of<ConfigError>([&] { expand_cells(config); });
  };
  EXPECT_THAT(refusal(R"([{"name": "s2o", "tau": [0.1, 0.2, 0.1]}])"),
              HasSubstr("test.json: methods.s2o: s2o tau=0.1 occurs twice, expected each"));
  EXPECT_THAT(refusal(R"([{"name": "s2o", "tau": [0.1, 0.2]}, {"name": "s2o", "tau": 0.2}])"),
              HasSubstr("methods[1]: s2o tau=0.2 occurs twice, first in test.json: methods[0]"));
}

TEST(expand_cells, the_same_input_twice_is_an_error_unless_it_has_two_names) {
  const char* twice =
      R"([{"source": "synthetic", "seqlen": 256}, {"source": "synthetic", "seqlen": [256, 512]}])";
  try {
    input_names(twice);
    FAIL();
  } catch (const ConfigError& error) {
    EXPECT_THAT(error.what(), HasSubstr("is the same input as one of test.json: inputs[0]"));
  }
  EXPECT_THAT(input_names(R"([{"source": "synthetic"}, {"source": "synthetic", "name": "b"}])"),
              ElementsAre("synthetic/mixed", "b"));
}

TEST(expand_cells, what_determines_the_numbers_is_in_the_id) {
  RunConfig config = two_inputs();
  const auto id = [](const RunConfig& of) { return expand_cells(of).inputs[0].identity.id(); };
  const std::string before = id(config);
  config.seed = 1;
  EXPECT_NE(id(config), before);
  config.seed = 0;
  EXPECT_EQ(id(config), before);
  config.dtype = "bf16";
  EXPECT_NE(id(config), before);
}

TEST(evaluate, attention_in_8_bits_has_an_error_and_its_rows_say_so) {
  RunConfig config = two_inputs();
  config.methods = Json::parse(R"([{"name": "dense", "compute": ["fp8", "stored"]}])");
  const EvalCells cells = expand_cells(config);
  RecordingSink sink;
  evaluate(cells, *make_cpu_backend(), {}, sink);
  ASSERT_EQ(sink.rows.size(), 4u);
  EXPECT_EQ(sink.rows[0].params, Json({{"compute", "fp8"}}));
  EXPECT_EQ(sink.rows[1].params, Json::object());
  EXPECT_GT(sink.rows[0].metrics.at("relative_l2").value(), 1e-4);
  EXPECT_LT(sink.rows[0].metrics.at("relative_l2").value(), 0.05);
  EXPECT_EQ(sink.rows[1].metrics.at("relative_l2").value(), 0.0);
}

TEST(evaluate, metric_out_of_its_range_is_null_and_the_row_stays) {
  RunConfig config = two_inputs();
  config.dtype = "fp32";
  EvalCells cells = expand_cells(config);
  const auto load = cells.inputs[0].load;
  cells.inputs[0].load = [load] {
    AttentionInput input = load();
    for (float& x : input.q) x = x < 0 ? -1e4f : 1e4f;
    for (float& x : input.k) x = x < 0 ? -1e4f : 1e4f;
    return input;
  };
  const auto backend = make_cpu_backend();
  RecordingSink sink;
  const EvalSummary summary = evaluate(cells, *backend, {}, sink);
  EXPECT_EQ(summary.failed, 0u);
  for (std::size_t cell = 0; cell < 3; ++cell) {
    const ResultRow& row = sink.rows[cell];
    EXPECT_FALSE(row.metrics.at("mass_recall").has_value());
    EXPECT_THAT(row.note.value(), HasSubstr("mass_recall: the lse of head"));
    EXPECT_TRUE(row.metrics.at("mse").has_value());
  }
  EXPECT_FALSE(sink.rows[3].note.has_value());
  EXPECT_LE(sink.rows[4].metrics.at("mass_recall").value(), 1.0 + 1e-4);
}

TEST(expand_cells, wrong_methods_name_their_place) {
  RunConfig config = two_inputs();
  config.methods[1]["name"] = "s2oo";
  try {
    expand_cells(config);
    FAIL();
  } catch (const ConfigError& error) {
    EXPECT_THAT(error.what(), HasSubstr("test.json: methods.s2oo: unknown method 's2oo', did you "
                                        "mean 's2o'?"));
  }
}

TEST(evaluate, a_row_planned_by_the_backend_says_what_planning_costs) {
  const EvalCells cells = expand_cells(two_inputs());
  PlanningBackend backend;
  RecordingSink sink;
  evaluate(cells, backend, {}, sink);
  ASSERT_EQ(sink.rows.size(), cells.size());
  EXPECT_EQ(sink.rows[1].planner, backend.name());
  EXPECT_EQ(sink.rows[1].metrics.at("plan_latency_ms"), 1.0);
  EXPECT_EQ(sink.rows[1].metrics.at("plan_flops"), 5e9);
  EXPECT_EQ(sink.rows[1].metrics.at("plan_bytes"), 7e6);
}

TEST(evaluate, a_plan_of_the_shape_alone_costs_nothing) {
  const EvalCells cells = expand_cells(two_inputs());
  const auto backend = make_cpu_backend();
  RecordingSink sink;
  evaluate(cells, *backend, {}, sink);
  ASSERT_EQ(sink.rows.size(), cells.size());
  const ResultRow& dense = sink.rows[0];
  EXPECT_EQ(dense.planner, "none");
  EXPECT_EQ(dense.metrics.at("plan_latency_ms"), 0.0);
  EXPECT_EQ(dense.metrics.at("total_latency_ms"), dense.metrics.at("attention_latency_ms"));
  const ResultRow& s2o = sink.rows[1];
  EXPECT_EQ(s2o.planner, "cpu");
  EXPECT_GT(s2o.metrics.at("plan_latency_ms"), 0.0);
}

TEST(evaluate, every_cell_becomes_a_row_with_all_metrics) {
  RunConfig config = two_inputs();
  config.save_outputs = true;
  const EvalCells cells = expand_cells(config);
  const auto backend = make_cpu_backend();
  RecordingSink sink;
  const EvalSummary summary = evaluate(cells, *backend, {.check_plans = true}, sink);
  EXPECT_EQ(summary.succeeded, 6u);
  EXPECT_EQ(summary.failed, 0u);
  EXPECT_EQ(sink.cells, (std::vector<std::size_t>{0, 1, 2, 3, 4, 5}));
  for (const ResultRow& row : sink.rows) {
    EXPECT_FALSE(row.error) << *row.error;
    EXPECT_EQ(row.backend, "cpu");
    EXPECT_EQ(row.num_q_heads, 2);
    for (const MetricColumn& column : metric_columns()) {
      // One repeat has no spread, and only a planner on a device says what it costs.
      static const std::set<std::string> kMissing = {"latency_p10_ms", "latency_p90_ms",
                                                     "plan_flops", "plan_bytes"};
      EXPECT_EQ(row.metrics.at(column.name).has_value(), !kMissing.contains(column.name))
          << column.name;
    }
    EXPECT_EQ(row.per_head.at("reference_mean_square").size(), 2u);
  }
  // tau = 0 is dense to rounding; tau = 0.5 is not.
  EXPECT_LT(sink.rows[4].metrics.at("relative_l2").value(), 1e-5);
  EXPECT_GT(sink.rows[5].metrics.at("relative_l2").value(), 1e-3);
  EXPECT_EQ(sink.rows[0].metrics.at("compute_density"), 1.0);
  EXPECT_TRUE(sink.rows[0].stop_steps.empty());
  EXPECT_EQ(sink.rows[5].stop_steps.size(), 2u * 5u);  // heads x tiles of 128 rows
  EXPECT_EQ(sink.output_sizes[5], 2u * 600u * 32u);
}

TEST(evaluate, failing_cell_is_a_row_with_an_error_and_the_sweep_goes_on) {
  EvalCells cells = expand_cells(two_inputs());
  const FailingMethod unsupported([] { throw UnsupportedError("head_dim 32 is odd"); });
  const FailingMethod greedy([] { throw std::bad_alloc(); });
  add_failing_method(cells, unsupported);
  add_failing_method(cells, greedy);
  const auto backend = make_cpu_backend();
  RecordingSink sink;
  const EvalSummary summary = evaluate(cells, *backend, {}, sink);
  EXPECT_EQ(summary.failed, 4u);
  EXPECT_EQ(summary.succeeded, 6u);
  EXPECT_THROW(std::rethrow_exception(summary.first_failure), std::bad_alloc);
  ASSERT_EQ(sink.rows.size(), 10u);
  EXPECT_THAT(sink.rows[1].error.value(), HasSubstr("out of memory"));
  EXPECT_EQ(sink.rows[2].error, "head_dim 32 is odd");
  EXPECT_EQ(sink.rows[2].seqlen, 200);
  EXPECT_FALSE(sink.rows[2].metrics.at("mse").has_value());
  EXPECT_EQ(sink.output_sizes[2], 0u);
  EXPECT_FALSE(sink.rows[3].error.has_value());
}

TEST(evaluate, broken_input_fails_its_cells_alone) {
  EvalCells cells = expand_cells(two_inputs());
  cells.inputs[0].load = []() -> AttentionInput { throw InputError("a.npz: is truncated"); };
  const auto backend = make_cpu_backend();
  RecordingSink sink;
  const EvalSummary summary = evaluate(cells, *backend, {}, sink);
  EXPECT_EQ(summary.failed, 3u);
  EXPECT_EQ(summary.succeeded, 3u);
  EXPECT_THROW(std::rethrow_exception(summary.first_failure), InputError);
  EXPECT_EQ(sink.rows[2].error, "a.npz: is truncated");
  EXPECT_EQ(sink.rows[2].num_q_heads, 0);
  EXPECT_FALSE(sink.rows[3].error.has_value());
}

TEST(evaluate, finished_cells_are_skipped_and_their_inputs_not_loaded) {
  EvalCells cells = expand_cells(two_inputs());
  cells.inputs[0].load = []() -> AttentionInput { throw InputError("must not be read"); };
  const auto backend = make_cpu_backend();
  RecordingSink sink;
  sink.done = {0, 1, 2, 4};
  evaluate(cells, *backend, {}, sink);
  EXPECT_EQ(sink.cells, (std::vector<std::size_t>{3, 5}));
}

TEST(evaluate, interrupt_ends_the_sweep_after_the_rows_so_far) {
  EvalCells cells = expand_cells(two_inputs());
  const FailingMethod interrupted([] { throw InterruptedError(); });
  add_failing_method(cells, interrupted);
  const auto backend = make_cpu_backend();
  RecordingSink sink;
  EXPECT_THROW(evaluate(cells, *backend, {}, sink), InterruptedError);
  EXPECT_EQ(sink.cells, (std::vector<std::size_t>{0}));
}

TEST(evaluate, nonfinite_output_is_an_error_that_names_the_place) {
  const float nan = std::numeric_limits<float>::quiet_NaN();
  for (const float value : {nan, std::numeric_limits<float>::infinity()}) {
    const EvalCells cells = expand_cells(two_inputs());
    // Head 1, token 7 of the first input: every row after its reference is spoiled.
    SpoilingBackend backend((200 + 7) * 32 + 3, value);
    RecordingSink sink;
    const EvalSummary summary = evaluate(cells, backend, {}, sink);
    EXPECT_EQ(summary.succeeded, 0u);
    EXPECT_THAT(sink.rows[0].error.value(), HasSubstr("spoiled: 1 of 12800 output values"));
    EXPECT_THAT(sink.rows[0].error.value(), HasSubstr("at head 1, token 7"));
    EXPECT_FALSE(sink.rows[0].metrics.at("mse").has_value());
    // What the output does not touch is still a measurement.
    EXPECT_EQ(sink.rows[0].metrics.at("compute_density"), 1.0);
  }
}

TEST(evaluate, planning_of_an_oracle_is_not_timed) {
  RunConfig config = two_inputs();
  config.methods = Json::parse(R"([{"name": "oracle_block", "density": 0.5}])");
  const auto backend = make_cpu_backend();
  RecordingSink sink;
  evaluate(expand_cells(config), *backend, {}, sink);
  EXPECT_FALSE(sink.rows[0].metrics.at("plan_latency_ms").has_value());
  EXPECT_FALSE(sink.rows[0].metrics.at("total_latency_ms").has_value());
  EXPECT_TRUE(sink.rows[0].metrics.at("attention_latency_ms").has_value());
}

constexpr const char* kTunedFile = R"({
  "kind": "s2o tuned settings", "schema_version": 1,
  "model": {"name": "m", "id": "0", "num_layers": 1, "num_q_heads": 2, "num_kv_heads": 1,
            "head_dim": 32},
  "context": {}, "target": {"loss": 0.01}, "objective": "time",
  "settings": [{"name": "s2o"}, {"name": "s2o", "segment_size": 256}],
  "lengths": [{"seqlen": 200, "layers": [[0, 1]]}]})";

TEST(evaluate, groups_that_plan_less_often_than_they_attend_take_all_of_their_planning) {
  const testing_support::TempFolder folder;
  testing_support::write_file(folder / "tuned.json", kTunedFile);
  RunConfig config = two_inputs();
  config.methods = {{{"name", "tuned"}, {"path", (folder / "tuned.json").string()}, {"layer", 0}}};
  config.timing.cpu_repeats = 3;
  PlanningBackend backend;  // plans once, in 1 ms
  RecordingSink sink;
  evaluate(expand_cells(config), backend, {}, sink);
  ASSERT_FALSE(sink.rows.empty());
  EXPECT_EQ(sink.rows[0].error.value_or(""), "");
  EXPECT_EQ(sink.rows[0].metrics.at("plan_latency_ms"), 2.0);
}

TEST(evaluate, a_tuned_file_takes_no_layer_that_nobody_named) {
  const testing_support::TempFolder folder;
  testing_support::write_file(folder / "tuned.json", kTunedFile);
  RunConfig config = two_inputs();  // synthetic: of no layer of a model
  config.methods = {{{"name", "tuned"}, {"path", (folder / "tuned.json").string()}}};
  const auto backend = make_cpu_backend();
  RecordingSink sink;
  evaluate(expand_cells(config), *backend, {}, sink);
  ASSERT_FALSE(sink.rows.empty());
  EXPECT_THAT(sink.rows[0].error.value_or(""), HasSubstr("tuned.layer: not set"));
}

TEST(evaluate, cpu_repeats_are_the_number_of_timed_runs) {
  RunConfig config = two_inputs();
  config.timing.cpu_repeats = 3;
  const auto backend = make_cpu_backend();
  RecordingSink sink;
  evaluate(expand_cells(config), *backend, {}, sink);
  EXPECT_TRUE(sink.rows[0].metrics.at("latency_p10_ms").has_value());
}

TEST(make_backend, cuda_without_kernels_is_unsupported) {
  const std::vector<BackendItem> devices = list_devices();
  const bool has_cuda = std::any_of(devices.begin(), devices.end(), [](const BackendItem& item) {
    return item.name.starts_with("cuda") && item.usable;
  });
  if (has_cuda) GTEST_SKIP() << "this machine runs CUDA";
  EXPECT_THROW(make_backend({.kind = DeviceKind::kCuda}), UnsupportedError);
  EXPECT_EQ(make_backend({.kind = DeviceKind::kAuto})->name(), "cpu");
  EXPECT_THROW(make_backend({.kind = DeviceKind::kAuto}, "sm80"), UnsupportedError);
}

TEST(make_backend, kernel_and_device_must_agree) {
  EXPECT_EQ(make_backend({.kind = DeviceKind::kAuto}, "ref")->kernel(), "attention_ref");
  EXPECT_THROW(make_backend({.kind = DeviceKind::kCpu}, "sm80"), ConfigError);
  EXPECT_THROW(make_backend({.kind = DeviceKind::kCuda}, "ref"), ConfigError);
}

TEST(list_kernels, names_every_kernel) {
  std::vector<std::string> names;
  for (const BackendItem& item : list_kernels()) {
    names.push_back(item.name);
    EXPECT_FALSE(item.detail.empty()) << item.name;
  }
  EXPECT_THAT(names, ::testing::ElementsAre("attention_ref", "attention_sm80", "attention_sm90",
                                            "planning_sm80", "planning_sm90"));
}

}  // namespace
}  // namespace s2o
