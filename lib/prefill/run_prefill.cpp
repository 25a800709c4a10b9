#include "lib/prefill/run_prefill.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <new>
#include <optional>

#include "kernels/common/parallel.h"
#include "lib/core/error.h"
#include "lib/core/log.h"
#include "lib/core/memory.h"
#include "lib/eval/run_context.h"
#include "lib/methods/tuned/tuned_file.h"
#include "lib/metrics/metric.h"
#include "lib/prefill/columns.h"
#include "lib/prefill/error_estimate.h"
#include "lib/prefill/measures.h"

namespace s2o {
namespace {

std::string text_of(const std::exception_ptr& failure, const std::string& what) {
  try {
    std::rethrow_exception(failure);
  } catch (const std::bad_alloc&) {
    return fmt::format("{}: out of memory; {} bytes are free", what, available_memory_bytes());
  } catch (const std::exception& error) {
    return error.what();
  } catch (...) {
    return "unknown failure";
  }
}

template <class Part>
std::vector<double> parts_of(const PrefillRun& run, Part part) {
  std::vector<double> values;
  for (const PrefillSplit& split : run.repeats) values.push_back(split.*part);
  return values;
}

std::optional<double> median_of(const PrefillRun& run, double PrefillSplit::*part) {
  return quantile(parts_of(run, part), 0.5);
}

void fill_times(const PrefillRun& run, const PrefillRun& dense, bool has_oracle, int gpus,
                ResultRow& row) {
  auto& metrics = row.metrics;
  metrics["linear_ms"] = median_of(run, &PrefillSplit::linear_ms);
  metrics["attention_ms"] = median_of(run, &PrefillSplit::attention_ms);
  metrics["rest_ms"] = median_of(run, &PrefillSplit::rest_ms);
  if (gpus > 1) metrics["communication_ms"] = median_of(run, &PrefillSplit::communication_ms);
  if (has_oracle) return;  // it plans from the dense result: no time to first token
  metrics["planning_ms"] = median_of(run, &PrefillSplit::planning_ms);
  const std::vector<double> totals = parts_of(run, &PrefillSplit::total_ms);
  const std::optional<double> total = quantile(totals, 0.5);
  metrics["time_to_first_token_ms"] = total;
  if (totals.size() > 1) {
    metrics["time_to_first_token_p10_ms"] = quantile(totals, 0.1);
    metrics["time_to_first_token_p90_ms"] = quantile(totals, 0.9);
  }
  const std::optional<double> dense_total = median_of(dense, &PrefillSplit::total_ms);
  if (total && dense_total && *total > 0.0) metrics["speedup_vs_dense"] = *dense_total / *total;
}

void fill_work(const PrefillRun& run, ResultRow& row) {
  if (run.layers.empty()) return;
  std::vector<double>& compute = row.prefill.per_layer["compute_density"];
  std::vector<double>& pairs = row.prefill.per_layer["pair_density"];
  row.planner = run.layers.front().planner;
  for (const PrefillLayer& layer : run.layers) {
    compute.push_back(layer.compute_density);
    pairs.push_back(layer.pair_density);
    if (layer.planner != row.planner) row.planner = "mixed";
  }
  row.metrics["compute_density"] = mean_of(compute);
  row.metrics["pair_density"] = mean_of(pairs);
}

void fill_losses(const PrefillRun& run, const PrefillRun& dense, ResultRow& row) {
  if (run.losses.empty()) return;
  row.metrics["held_out_loss"] = mean_of(run.losses);
  row.metrics["dense_loss"] = mean_of(dense.losses);
  row.prefill.loss_by_position = nlohmann::ordered_json::array();
  for (const LossBucket& bucket : bucket_losses(run.losses)) {
    row.prefill.loss_by_position.push_back(
        {{"begin", bucket.begin}, {"end", bucket.end}, {"loss", bucket.loss}});
  }
}

// What the checked rows say of the whole, and a warning where a tuned file promised less.
void fill_estimates(const PrefillRun& run, const PrefillSetting& setting, const ModelConfig& config,
                    ResultRow& row) {
  if (run.row_errors.empty()) return;
  row.metrics["check_ms"] = run.check_ms;
  const auto warn = [&row](double low, double promised, const char* what) {
    if (low <= promised) return;
    log_warning("{} on {}, {} tokens: {} is above the target: at least {:.4g}, expected {:.4g}",
                row.method, row.input, row.seqlen, what, low, promised);
  };
  std::shared_ptr<const TunedFile> file;
  if (setting.method == &find_method("tuned")) {
    file = load_tuned_file(setting.params.get_path("path"));
  }
  const std::vector<double> mean(run.row_errors.size(),
                                 1.0 / static_cast<double>(run.row_errors.size()));
  const ErrorEstimate l2 = estimate_error(run.row_errors, config.num_q_heads, mean);
  const double low = std::sqrt(std::max(0.0, l2.value - l2.margin));
  row.metrics["estimated_l2"] = std::sqrt(l2.value);
  if (std::isfinite(l2.margin)) {
    row.metrics["estimated_l2_low"] = low;
    row.metrics["estimated_l2_high"] = std::sqrt(l2.value + l2.margin);
  }
  if (!file) return;
  warn(low, file->target.value("relative_l2", HUGE_VAL), "the relative L2 error");
  if (!file->context.contains("effects")) return;
  const auto effects = file->context["effects"].get<std::vector<double>>();
  const ErrorEstimate kl = estimate_error(run.row_errors, config.num_q_heads, effects);
  row.metrics["estimated_kl"] = kl.value;
  if (std::isfinite(kl.margin)) {
    row.metrics["estimated_kl_low"] = std::max(0.0, kl.value - kl.margin);
    row.metrics["estimated_kl_high"] = kl.value + kl.margin;
  }
  warn(kl.value - kl.margin, file->target.value("loss", HUGE_VAL), "the estimated KL from dense");
}

// Compares the rows of `run` with those of `dense`, some at a time: memory does not grow with their
// number. Rows that predict an answer are scored as well.
class LogitComparison {
 public:
  LogitComparison(PrefillBackend& backend, const Prompt& prompt, const ModelConfig& config)
      : backend_(backend), prompt_(prompt), config_(config) {}

  void run(const PrefillRun& run, const PrefillRun& dense, ResultRow& row) {
    const auto width = static_cast<std::size_t>(config_.hidden_size);
    const auto vocab = static_cast<std::size_t>(config_.vocab_size);
    const std::size_t rows = run.hidden.size() / width;
    const std::size_t chunk = std::min<std::size_t>(rows, PrefillBackend::kLogitRows);
    std::vector<float> logits(chunk * vocab);
    std::vector<float> reference(&run == &dense ? 0 : logits.size());
    for (std::size_t first = 0; first < rows; first += chunk) {
      const std::size_t count = std::min(chunk, rows - first);
      const auto read = [&](const PrefillRun& from, std::vector<float>& to) {
        const std::span<float> found = std::span(to).first(count * vocab);
        backend_.logits_of(std::span(from.hidden).subspan(first * width, count * width), found);
        return found;
      };
      const std::span<const float> found = read(run, logits);
      const std::span<const float> expected = &run == &dense ? found : read(dense, reference);
      score(found);
      divergence_.add(found, expected, config_.vocab_size);
      if (!std::isfinite(divergence_.kl_mean()) && !check_finite(found, row)) return;
    }
    fill(row);
  }

 private:
  bool check_finite(std::span<const float> logits, ResultRow& row) const {
    const auto bad = std::find_if(logits.begin(), logits.end(),
                                  [](float logit) { return !std::isfinite(logit); });
    if (bad == logits.end()) return true;
    row.error = fmt::format("{}: logits hold {} in row {}", row.method, *bad,
                            first_row(logits) + (bad - logits.begin()) / config_.vocab_size);
    return false;
  }

  // Of a chunk that was added last.
  std::int64_t first_row(std::span<const float> logits) const {
    return divergence_.num_rows() - static_cast<std::int64_t>(logits.size()) / config_.vocab_size;
  }

  void score(std::span<const float> logits) {
    if (prompt_.answer_length == 0) return;
    const auto rows = static_cast<std::int64_t>(logits.size()) / config_.vocab_size;
    const std::span<const std::int32_t> answer(
        prompt_.tokens.data() + prompt_.answer_start + divergence_.num_rows(),
        static_cast<std::size_t>(rows));
    correct_ += count_correct(logits, answer, config_.vocab_size);
  }

  void fill(ResultRow& row) const {
    if (divergence_.num_rows() == 0) return;
    row.metrics["kl_from_dense"] = divergence_.kl_mean();
    row.metrics["max_abs_logit_error"] = divergence_.max_abs();
    row.metrics["top1_agreement"] = divergence_.top1_agreement();
    row.metrics["logit_rows"] = static_cast<double>(divergence_.num_rows());
    if (prompt_.answer_length == 0) return;
    const auto tokens = static_cast<double>(prompt_.answer_length);
    row.metrics["answer_tokens"] = tokens;
    row.metrics["answer_correct"] = static_cast<double>(correct_);
    row.metrics["retrieval_accuracy"] = static_cast<double>(correct_) / tokens;
    row.metrics["exact_match"] = correct_ == prompt_.answer_length ? 1.0 : 0.0;
  }

  PrefillBackend& backend_;
  const Prompt& prompt_;
  const ModelConfig& config_;
  LogitDivergence divergence_;
  std::int64_t correct_ = 0;
};

// A value that is NaN or infinite becomes null, and the row's error names it.
void drop_nonfinite(ResultRow& row) {
  for (const MetricColumn& column : prefill_columns()) {
    std::optional<double>& value = row.metrics[column.name];
    if (!value || std::isfinite(*value)) continue;
    if (!row.error) row.error = fmt::format("{} is {}", column.name, *value);
    value.reset();
  }
}

class Runner {
 public:
  Runner(const PrefillCells& cells, PrefillBackend& backend, PrefillSink& sink, bool stop_when_lost)
      : cells_(cells), backend_(backend), sink_(sink), stop_when_lost_(stop_when_lost) {}

  EvalSummary run() {
    lost_ = backend_.lost();
    while (const std::optional<std::size_t> cell = sink_.next(cells_.size())) {
      throw_if_cancelled();
      if (!lost_.empty()) {
        fail(*cell, std::make_exception_ptr(DeviceLostError(
                        lost_ + "; the same command with --resume computes this row")));
        continue;
      }
      enter_prompt(*cell);
      run_cell(*cell);
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
    if (stop_when_lost_) throw DeviceLostError(lost_);
    log_error(lost_);
  }

  // Prefills the prompt of `cell` with dense attention, unless it is the one at hand.
  void enter_prompt(std::size_t cell) {
    const std::size_t index = cell / cells_.settings.size();
    if (prompt_index_ == index) return;
    prompt_index_ = index;
    dense_.reset();
    dense_ = prefill(cells_.prompts[index], cells_.dense, dense_failure_);
  }

  void run_cell(std::size_t cell) {
    const PrefillSetting& setting = cells_.setting(cell);
    if (!dense_) {
      fail(cell, dense_failure_);
    } else if (setting.is_dense()) {
      finish(cell, *dense_, *dense_);
    } else {
      throw_if_cancelled();
      std::exception_ptr failure;
      const std::optional<PrefillRun> run = prefill(cells_.prompt(cell), setting, failure);
      if (run) {
        finish(cell, *run, *dense_);
      } else {
        fail(cell, failure);
      }
    }
  }

  // Nothing, and why, for a prefill that failed.
  std::optional<PrefillRun> prefill(const Prompt& prompt, const PrefillSetting& setting,
                                    std::exception_ptr& failure) {
    sink_.start(fmt::format("{} on {}, {} tokens",
                            setting_text(setting.method->info().name, setting.params.to_json()),
                            prompt.name, prompt.seqlen()));
    std::optional<PrefillRun> run;
    try {
      const std::vector<LayerMethod> layers = setting.layers();
      run.emplace(backend_.run(prompt.tokens, layers, wanted_of(prompt), cells_.config.timing,
                               [this](int done, int total) { sink_.progress(done, total); }));
    } catch (const InterruptedError&) {
      throw;
    } catch (...) {
      failure = std::current_exception();
    }
    sink_.end();
    return run;
  }

  PrefillWanted wanted_of(const Prompt& prompt) const {
    PrefillWanted wanted = {.check_rows = cells_.config.check_rows,
                            .check_seed = cells_.config.seed};
    if (!cells_.measures_accuracy) return wanted;
    wanted.hidden_positions = logit_rows(prompt, cells_.config.logit_positions);
    wanted.losses = prompt.wants_loss;
    return wanted;
  }

  void finish(std::size_t cell, const PrefillRun& run, const PrefillRun& dense) {
    ResultRow row = blank_prefill_row(cells_, cell, backend_);
    try {
      fill_times(run, dense, cells_.setting(cell).has_oracle(), cells_.config.parallel, row);
      fill_work(run, row);
      fill_losses(run, dense, row);
      fill_estimates(run, cells_.setting(cell), cells_.model.config, row);
      LogitComparison(backend_, cells_.prompt(cell), cells_.model.config).run(run, dense, row);
    } catch (const InterruptedError&) {
      throw;
    } catch (...) {  // the logits are computed where the model is
      fail(cell, std::current_exception());
      return;
    }
    if (backend_.name() == "cuda") row.metrics["gpus"] = cells_.config.parallel;
    if (run.device_bytes > 0) row.metrics["device_bytes"] = static_cast<double>(run.device_bytes);
    drop_nonfinite(row);
    if (row.error) {
      add_failed(cell, row, std::make_exception_ptr(Error(*row.error)));
    } else {
      ++summary_.succeeded;
      sink_.add(cell, row);
    }
  }

  void fail(std::size_t cell, const std::exception_ptr& failure) {
    ResultRow row = blank_prefill_row(cells_, cell, backend_);
    row.error = text_of(failure, row.method);
    add_failed(cell, row, failure);
  }

  void add_failed(std::size_t cell, const ResultRow& row, const std::exception_ptr& failure) {
    log_error(fmt::format("{} on {}, {} tokens: {}", setting_text(row.method, row.params),
                          row.input, row.seqlen, *row.error));
    ++summary_.failed;
    if (!summary_.first_failure) summary_.first_failure = failure;
    sink_.add(cell, row);
  }

  const PrefillCells& cells_;
  PrefillBackend& backend_;
  PrefillSink& sink_;
  const bool stop_when_lost_;
  EvalSummary summary_;
  std::optional<std::size_t> prompt_index_;  // of the prompt at hand
  std::optional<PrefillRun> dense_;          // none: it failed
  std::exception_ptr dense_failure_;
  std::size_t checked_failures_ = 0;
  std::string lost_;  // why the device cannot be used any more, "" while it can
};

}  // namespace

std::size_t count_prefills(const PrefillCells& cells, const PrefillSink& sink) {
  std::size_t prefills = 0;
  for (std::size_t i = 0; i < cells.prompts.size(); ++i) {
    std::size_t missing = 0;
    std::size_t sparse = 0;
    for (std::size_t s = 0; s < cells.settings.size(); ++s) {
      if (sink.has_row(i * cells.settings.size() + s)) continue;
      ++missing;
      sparse += cells.settings[s].is_dense() ? 0 : 1;
    }
    prefills += missing == 0 ? 0 : 1 + sparse;
  }
  return prefills;
}

EvalSummary run_prefills(const PrefillCells& cells, PrefillBackend& backend, PrefillSink& sink,
                         bool stop_when_lost) {
  return Runner(cells, backend, sink, stop_when_lost).run();
}

ResultRow blank_prefill_row(const PrefillCells& cells, std::size_t cell,
                            const PrefillBackend& backend) {
  const Prompt& prompt = cells.prompt(cell);
  const PrefillSetting& setting = cells.setting(cell);
  const ModelConfig& config = cells.model.config;
  ResultRow row;
  row.kind = RowKind::kPrefill;
  row.input = prompt.name;
  row.input_id = prompt.identity.id();
  row.seqlen = prompt.seqlen();
  row.num_q_heads = config.num_q_heads;
  row.num_kv_heads = config.num_kv_heads;
  row.head_dim = config.head_dim;
  row.method = setting.method->info().name;
  row.params = setting.row_params;
  row.kernel = backend.kernel();
  row.backend = backend.name();
  row.prefill = {.task = prompt.task, .model = cells.model_label, .qkv = cells.qkv_label};
  for (const MetricColumn& column : prefill_columns()) row.metrics[column.name] = std::nullopt;
  return row;
}

nlohmann::ordered_json make_prefill_context(const PrefillCells& cells, PrefillBackend& backend) {
  nlohmann::ordered_json inputs = nlohmann::ordered_json::array();
  for (const Prompt& prompt : cells.prompts) {
    inputs.push_back(input_to_json(prompt.name, prompt.identity));
  }
  return make_run_context({.name = cells.config.name,
                           .seed = cells.config.seed,
                           .num_cells = cells.size(),
                           .config = to_json(cells.config),
                           .inputs = std::move(inputs)},
                          backend.context());
}

}  // namespace s2o
