#include "lib/eval/evaluator.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <new>
#include <optional>

#include "kernels/common/parallel.h"
#include "lib/core/error.h"
#include "lib/core/log.h"
#include "lib/core/memory.h"
#include "lib/core/text.h"
#include "lib/methods/setting.h"
#include "lib/metrics/metric.h"

namespace s2o {
namespace {

using Clock = std::chrono::steady_clock;

double milliseconds_since(Clock::time_point begin) {
  return std::chrono::duration<double, std::milli>(Clock::now() - begin).count();
}

// "" or what is wrong with the values: the first bad one and how many there are.
std::string describe_nonfinite(const Problem& problem, const std::vector<ErrorSums>& sums,
                               const AttentionRun& run, Backend& backend) {
  std::int64_t bad = 0;
  for (const ErrorSums& head : sums) bad += head.nonfinite;
  if (bad > 0) {
    const std::vector<float>& out = backend.out();
    const auto first =
        std::find_if(out.begin(), out.end(), [](float x) { return !std::isfinite(x); });
    const auto row = (first - out.begin()) / problem.head_dim;
    return fmt::format(
        "{} of {} output values are not finite, the first is {} at head {}, token {}", bad,
        out.size(), *first, row / problem.seqlen, row % problem.seqlen);
  }
  for (std::size_t i = 0; i < run.lse.size(); ++i) {
    // -infinity is legal: a row that visits no key.
    if (!std::isnan(run.lse[i]) && run.lse[i] != HUGE_VALF) continue;
    const auto row = static_cast<std::int64_t>(i);
    return fmt::format("the lse is {} at head {}, token {}", run.lse[i], row / problem.seqlen,
                       row % problem.seqlen);
  }
  return "";
}

// Steps that each tile of a stop rule took, summed over passes; empty for a plan without one.
std::vector<std::int32_t> collect_stop_steps(const SparsePlan& plan, const AttentionRun& run) {
  bool stoppable = false;
  for (const PlanPass& pass : plan.passes) {
    for (const PlanItem& item : pass.items) stoppable = stoppable || item.stoppable;
  }
  if (!stoppable) return {};
  const auto tiles = static_cast<std::size_t>(plan.num_tiles());
  std::vector<std::int32_t> steps(tiles, 0);
  for (std::size_t i = 0; i < run.stats.size(); ++i) steps[i % tiles] += run.stats[i].stop_steps;
  return steps;
}

// Evaluates the cells of one input after the other; holds what the cells of an input share.
class Evaluator {
 public:
  Evaluator(const EvalCells& cells, Backend& backend, const EvaluateOptions& options,
            EvalSink& sink)
      : cells_(cells), backend_(backend), options_(options), sink_(sink) {}

  EvalSummary run() {
    lost_ = backend_.lost();
    while (const std::optional<std::size_t> cell = sink_.next(cells_.size())) {
      throw_if_cancelled();
      if (!lost_.empty()) {
        fail_lost(*cell);
        continue;
      }
      enter_input(*cell);
      if (input_failure_) {
        add_failed_row(*cell, input_failure_, input_failure_text_);
      } else {
        run_cell(*cell);
      }
      check_device();
    }
    return summary_;
  }

 private:
  // Asks the device once something has failed.
  void check_device() {
    if (summary_.failed == checked_failures_) return;
    checked_failures_ = summary_.failed;
    lost_ = backend_.lost();
    if (lost_.empty()) return;
    if (options_.stop_when_lost) throw DeviceLostError(lost_);
    log_error(lost_);
    input_.reset();
  }
  void fail_lost(std::size_t cell) {
    const std::string text = lost_ + "; the same command with --resume computes this row";
    add_failed_row(cell, std::make_exception_ptr(DeviceLostError(text)), text);
  }

  // Makes the input of `cell` the one at hand. Where it is not there, none of its cells can run.
  void enter_input(std::size_t cell) {
    const std::size_t index = cell / cells_.settings.size();
    if (input_index_ == index) return;
    input_index_ = index;
    input_failure_ = nullptr;
    try {
      load(cell);
    } catch (const InterruptedError&) {
      throw;
    } catch (...) {
      input_failure_ = std::current_exception();
      input_failure_text_ = failure_text(input_failure_, cells_.input(cell).name);
      log_error(input_failure_text_);
    }
  }

  // Loads the input of `cell` and computes its dense reference.
  void load(std::size_t cell) {
    const InputCell& source = cells_.input(cell);
    sink_.start(cell, fmt::format("loading {} layer {}", source.name, source.layer));
    input_.reset();
    input_ = source.load();
    input_->name = source.name;
    const Problem& problem = input_->problem;
    require_memory(
        static_cast<std::uint64_t>(output_bytes()),
        fmt::format("{} layer {}, seqlen {}: outputs", source.name, source.layer, problem.seqlen));
    sink_.start(cell, fmt::format("dense reference of {} layer {}", source.name, source.layer));
    backend_.set_input(*input_);
    backend_.set_compute(std::nullopt);
    const Method& dense = find_method("dense");
    const ParamSet no_params(dense.info().params);
    backend_.run_reference(dense.plan_cpu({*input_, backend_.reference()}, no_params),
                           cells_.config.timing, run_);
    const std::string wrong = describe_nonfinite(problem, backend_.error_sums(), run_, backend_);
    if (!wrong.empty() && !cells_.config.allow_nonfinite) {
      throw InputError(
          fmt::format("{} layer {}: dense attention: {}", source.name, source.layer, wrong));
    }
    dense_ms_ = quantile(run_.attention_ms, 0.5);
    log_info("{} layer {}: seqlen {}, dense attention {:.1f} ms", source.name, source.layer,
             problem.seqlen, dense_ms_.value_or(0.0));
  }

  // Outputs and lse in host memory.
  std::int64_t output_bytes() const {
    const Problem& problem = input_->problem;
    return static_cast<std::int64_t>(sizeof(float)) * problem.num_q_heads * problem.seqlen *
           (problem.head_dim * backend_.outputs_on_host() + 2);
  }

  void run_cell(std::size_t cell) {
    throw_if_cancelled();
    const MethodSetting& setting = cells_.setting(cell);
    const InputCell& source = cells_.input(cell);
    sink_.start(cell,
                fmt::format("{} on {} layer {}",
                            setting_text(setting.method->info().name, setting.params.to_json()),
                            source.name, source.layer));
    ResultRow row = blank_row(cells_, cell, backend_, &*input_);
    static const std::vector<float> kNotAsked;
    const std::vector<float>* out = &kNotAsked;
    try {
      backend_.set_heads(std::nullopt);
      measure(setting, source, row);
      if (cells_.config.save_outputs) out = &backend_.out();
    } catch (const InterruptedError&) {
      throw;
    } catch (...) {
      fail_cell(cell, std::current_exception());
      return;
    }
    if (row.error) {
      log_failure(cell, *row.error);
      count_failure(std::make_exception_ptr(Error(*row.error)));
    } else {
      ++summary_.succeeded;
    }
    sink_.add(cell, row, *out);
  }

  // What planning and attention of some heads did.
  struct Measured {
    std::string planner;
    std::vector<double> plan_ms;
    std::optional<PlanningCost> cost;
    Work work;
    std::vector<std::int32_t> stop_steps;
  };

  // Plans, runs and fills in the row.
  void measure(const MethodSetting& setting, const InputCell& source, ResultRow& row) {
    const std::vector<HeadSetting> groups = setting.method->head_settings(
        setting.params, source.names_layer ? source.layer : -1, input_->problem);
    Measured found = groups.empty() ? measure_heads(*setting.method, setting.params, {}, *input_)
                                    : measure_groups(groups);
    Timings timings = {.dense_attention_ms = dense_ms_};
    timings.plan_ms = std::move(found.plan_ms);
    timings.attention_ms = run_.attention_ms;
    row.planner = found.planner;
    row.stop_steps = std::move(found.stop_steps);
    const std::vector<ErrorSums> sums = backend_.error_sums();
    const std::string wrong = describe_nonfinite(input_->problem, sums, run_, backend_);
    if (!wrong.empty()) row.error = fmt::format("{}: {}", backend_.kernel(), wrong);
    fill_metrics({*input_, backend_.reference(), sums, run_.lse, found.work, timings,
                  run_.workspace_bytes, found.cost},
                 row);
  }

  // Of all heads of `input`, or of those that the backend is set to.
  Measured measure_heads(const Method& method, const ParamSet& params,
                         std::span<const ParamSet> head_params, const AttentionInput& input) {
    Measured found{.planner = "cpu"};
    std::optional<SparsePlan> plan;
    backend_.set_compute(quantise_rule(params));
    auto planning = backend_.plan_and_run(method, params, head_params, cells_.config.timing,
                                          options_.check_plans, run_);
    if (planning) {
      found.planner = backend_.name();
      found.cost = planning->cost;
      found.plan_ms = std::move(planning->plan_ms);
      plan.emplace(std::move(planning->plan));
      if (options_.check_plans) check_plan(input.problem, *plan);
    } else {
      plan.emplace(
          plan_on_cpu(method, params, {input, backend_.reference(), head_params}, found.plan_ms));
      if (!method.info().reads_input) found.planner = "none";
      if (options_.check_plans) check_plan(input.problem, *plan);
      run_.quantise_ms.clear();
      backend_.run(*plan, cells_.config.timing, run_);
      const double quantise_ms = quantile(run_.quantise_ms, 0.5).value_or(0.0);
      for (double& ms : found.plan_ms) ms += quantise_ms;
    }
    found.work = count_work(input.problem, *plan, run_.stats);
    found.stop_steps = collect_stop_steps(*plan, run_);
    return found;
  }

  // Groups of heads one after the other: times are sums, what a head has stands in its place.
  Measured measure_groups(const std::vector<HeadSetting>& groups) {
    Measured all;
    AttentionRun run;
    bool is_planned_on_host = false;
    for (const HeadSetting& group : groups) {
      backend_.set_heads(group.q_heads);
      Measured one = measure_heads(*group.method, *group.params, group.head_params,
                                   head_slice(*input_, group.q_heads));
      all.planner = all.planner.empty() || all.planner == one.planner ? one.planner : "mixed";
      is_planned_on_host |= one.planner == "cpu";
      // Plans are made less often than attention runs where the host makes them, or once for all.
      const std::size_t repeats = run_.attention_ms.size();
      if (one.plan_ms.size() != repeats) {
        one.plan_ms.assign(repeats, quantile(one.plan_ms, 0.5).value());
      }
      all.plan_ms.resize(repeats);
      run.attention_ms.resize(repeats);
      for (std::size_t i = 0; i < repeats; ++i) {
        all.plan_ms[i] += one.plan_ms[i];
        run.attention_ms[i] += run_.attention_ms[i];
      }
      if (one.cost) {
        if (!all.cost) all.cost.emplace();
        all.cost->flops += one.cost->flops;
        all.cost->bytes += one.cost->bytes;
      }
      all.work.total += one.work.total;
      all.work.per_head.insert(all.work.per_head.end(), one.work.per_head.begin(),
                               one.work.per_head.end());
      run.lse.insert(run.lse.end(), run_.lse.begin(), run_.lse.end());
      run.workspace_bytes = std::max(run.workspace_bytes, run_.workspace_bytes);
    }
    // What is known of some heads only is not known of the layer.
    if (is_planned_on_host) all.cost.reset();
    run_ = std::move(run);
    return all;
  }

  SparsePlan plan_on_cpu(const Method& method, const ParamSet& params, const PlanContext& context,
                         std::vector<double>& plan_ms) const {
    const MethodInfo& info = method.info();
    if (!info.reads_input) {  // made once for all layers and inputs of the shape
      plan_ms.assign(1, 0.0);
      return method.plan_cpu(context, params);
    }
    std::optional<SparsePlan> plan;
    for (int repeat = 0; repeat < cells_.config.timing.cpu_repeats; ++repeat) {
      plan.reset();
      const auto begin = Clock::now();
      plan.emplace(method.plan_cpu(context, params));
      plan_ms.push_back(milliseconds_since(begin));
    }
    if (info.is_oracle) plan_ms.clear();
    return std::move(*plan);
  }

  static void fill_metrics(const MetricContext& context, ResultRow& row) {
    for (const Metric* metric : all_metrics()) {
      const std::vector<MetricValue> values = metric->compute(context);
      for (std::size_t i = 0; i < values.size(); ++i) {
        const MetricColumn& column = metric->columns[i];
        if (column.per_head) row.per_head[column.name] = values[i].per_head;
        if (column.is_column) set_metric(row, column.name, values[i].value, values[i].reason);
      }
    }
  }

  void fail_cell(std::size_t cell, const std::exception_ptr& failure) {
    const MethodSetting& setting = cells_.setting(cell);
    const std::string text = failure_text(failure, setting.method->info().name);
    log_failure(cell, text);
    add_failed_row(cell, failure, text);
  }

  void add_failed_row(std::size_t cell, const std::exception_ptr& failure,
                      const std::string& text) {
    ResultRow row = blank_row(cells_, cell, backend_, input_ ? &*input_ : nullptr);
    row.error = text;
    count_failure(failure);
    sink_.add(cell, row, {});
  }

  void count_failure(const std::exception_ptr& failure) {
    ++summary_.failed;
    if (!summary_.first_failure) summary_.first_failure = failure;
  }

  void log_failure(std::size_t cell, const std::string& text) const {
    const MethodSetting& setting = cells_.setting(cell);
    log_error(fmt::format("{} on {} layer {}: {}",
                          setting_text(setting.method->info().name, setting.params.to_json()),
                          cells_.input(cell).name, cells_.input(cell).layer, text));
  }

  std::string failure_text(const std::exception_ptr& failure, const std::string& what) const {
    try {
      std::rethrow_exception(failure);
    } catch (const std::bad_alloc&) {
      const std::int64_t held = input_ ? output_bytes() : 0;
      return fmt::format("{}: out of memory; the outputs alone take {} bytes, {} bytes are free",
                         what, held, available_memory_bytes());
    } catch (const std::exception& error) {
      return error.what();
    } catch (...) {
      return "unknown failure";
    }
  }

  const EvalCells& cells_;
  Backend& backend_;
  const EvaluateOptions& options_;
  EvalSink& sink_;
  EvalSummary summary_;
  std::optional<std::size_t> input_index_;  // of the input at hand
  std::exception_ptr input_failure_;        // why it is not there
  std::string input_failure_text_;
  std::optional<AttentionInput> input_;
  std::optional<double> dense_ms_;
  AttentionRun run_;
  std::size_t checked_failures_ = 0;
  std::string lost_;  // why the device cannot be used any more, "" while it can
};

}  // namespace

std::optional<std::size_t> CellSink::next(std::size_t num_cells) {
  while (next_ < num_cells && has_row(next_)) ++next_;
  return next_ < num_cells ? std::optional(next_++) : std::nullopt;
}

void set_metric(ResultRow& row, const std::string& column, std::optional<double> value,
                std::string reason) {
  if (value && !std::isfinite(*value)) {
    reason = fmt::format("is {}", *value);
    value.reset();
  }
  row.metrics[column] = value;
  if (value || reason.empty()) return;
  row.note = fmt::format("{}{}: {}", row.note ? *row.note + "; " : "", column, reason);
}

EvalSummary evaluate(const EvalCells& cells, Backend& backend, const EvaluateOptions& options,
                     EvalSink& sink) {
  return Evaluator(cells, backend, options, sink).run();
}

ResultRow blank_row(const EvalCells& cells, std::size_t cell, const Backend& backend,
                    const AttentionInput* input) {
  const InputCell& source = cells.input(cell);
  const MethodSetting& setting = cells.setting(cell);
  ResultRow row;
  row.input = source.name;
  row.input_id = source.identity.id();
  row.layer = source.layer;
  row.seqlen = source.seqlen;
  if (input != nullptr) {
    row.seqlen = input->problem.seqlen;
    row.num_q_heads = input->problem.num_q_heads;
    row.num_kv_heads = input->problem.num_kv_heads;
    row.head_dim = input->problem.head_dim;
  }
  row.method = setting.method->info().name;
  row.params = setting.method->row_params(setting.params);
  row.kernel = backend.kernel();
  row.backend = backend.name();
  for (const MetricColumn& column : metric_columns()) row.metrics[column.name] = std::nullopt;
  return row;
}

}  // namespace s2o
