#include "lib/report/error_metric.h"

#include <fmt/format.h>

#include <map>
#include <tuple>

#include "lib/core/error.h"
#include "lib/core/text.h"
#include "lib/report/retrieval_cells.h"
#include "lib/report/settings.h"

namespace s2o {
namespace {

const std::vector<ErrorMetric>& error_metrics() {
  static const std::vector<ErrorMetric> kMetrics = {
      {ErrorOn::kMse, "mse", "MSE", {}, true},
      {ErrorOn::kRelativeL2, "relative_l2", "relative L2", {0.05, 0.1, 0.15, 0.2}, true},
      {ErrorOn::kKl, "kl_from_dense", "KL from dense", {0.005, 0.01, 0.02, 0.05}, false},
      {ErrorOn::kHeldOutLoss,
       "held_out_loss",
       "held-out loss over dense",
       {0.002, 0.005, 0.01, 0.02, 0.05},
       false},
      {ErrorOn::kAccuracy, "accuracy", "accuracy lost to dense", {0.02, 0.05, 0.1}, false}};
  return kMetrics;
}

// The parts that a method's name and parameters decide.
UnitSetting named_setting(const std::string& method, const nlohmann::ordered_json& params,
                          const CurveOptions& options) {
  const MethodFacts facts = options.facts_of(method);
  UnitSetting setting;
  setting.method = method;
  setting.label = setting_label(method, params, facts);
  setting.is_oracle = facts.is_oracle;
  setting.rank = facts.rank;
  if (params.contains(facts.knob) && params.at(facts.knob).is_number()) {
    setting.knob = params.at(facts.knob).get<double>();
  }
  return setting;
}

void add_shape(const ResultRow& row, UnitSetting& setting) {
  setting.seqlen = row.seqlen;
  setting.backend = row.backend;
  setting.kernel = row.kernel;
  setting.num_q_heads = row.num_q_heads;
  setting.num_kv_heads = row.num_kv_heads;
  setting.head_dim = row.head_dim;
}

std::optional<double> attention_and_planning_ms(const ResultRow& row) {
  const std::optional<double> attention = row_metric(row, "attention_ms");
  const std::optional<double> planning = row_metric(row, "planning_ms");
  if (!attention || !planning) return std::nullopt;
  return *attention + *planning;
}

// Prompts of one name, length and model on one backend share a dense row.
std::string prompt_key(const ResultRow& row) {
  return fmt::format("{}\n{}\n{}\n{}", row.input, row.seqlen, row.prefill.model, row.backend);
}

std::optional<double> error_of(const ResultRow& row, ErrorOn on) {
  if (on != ErrorOn::kHeldOutLoss) return row_metric(row, error_metric(on).name);
  const std::optional<double> loss = row_metric(row, "held_out_loss");
  const std::optional<double> dense_loss = row_metric(row, "dense_loss");
  if (!loss || !dense_loss) return std::nullopt;
  return *loss - *dense_loss;
}

// Of evaluations, or of prefills of text: prompts with an answer are scored by it.
std::vector<UnitSetting> of_rows(const ResultTable& table, ErrorOn on,
                                 const CurveOptions& options) {
  const bool is_of_attention = error_metric(on).is_of_attention;
  std::map<std::string, std::optional<double>> dense_ms;  // of prefills
  for (const ResultRow& row : table.rows) {
    const std::optional<double> ms = attention_and_planning_ms(row);
    if (row.kind == RowKind::kPrefill && is_dense_reference(row.method, row.params) && ms) {
      dense_ms[prompt_key(row)] = ms;
    }
  }
  std::vector<UnitSetting> settings;
  for (const ResultRow& row : table.rows) {
    if ((row.kind == RowKind::kAttention) != is_of_attention || row.error) continue;
    if (is_dense_reference(row.method, row.params) || !row.prefill.task.empty()) continue;
    const std::optional<double> error = error_of(row, on);
    const std::optional<double> density = row_metric(row, "compute_density");
    if (!error || !density) continue;
    UnitSetting& setting = settings.emplace_back(named_setting(row.method, row.params, options));
    add_shape(row, setting);
    setting.group = is_of_attention ? row.input : row.prefill.model;
    setting.unit = is_of_attention ? fmt::format("layer {}", row.layer) : row.input;
    setting.error = *error;
    setting.compute_density = *density;
    if (!is_of_attention) {
      setting.total_ms = attention_and_planning_ms(row);
      setting.speedup_vs_dense = share(dense_ms[prompt_key(row)], setting.total_ms);
    } else if (!setting.is_oracle) {
      setting.total_ms = row_metric(row, "total_latency_ms");
      setting.speedup_vs_dense = row_metric(row, "speedup_vs_dense");
    }
  }
  return settings;
}

std::vector<UnitSetting> of_accuracy(const ResultTable& table, const CurveOptions& options) {
  std::vector<UnitSetting> settings;
  const std::vector<RetrievalCell> cells = retrieval_cells(table, options);
  for (const RetrievalCell& cell : cells) {
    const RetrievalCell* dense = dense_cell(cells, cell);
    if (is_dense_reference(cell.method, cell.params)) continue;
    if (dense == nullptr || dense_fails(*dense)) continue;
    const std::optional<double> lost = accuracy_lost(cell, *dense);
    if (!lost || !cell.compute_density) continue;
    UnitSetting& setting = settings.emplace_back(named_setting(cell.method, cell.params, options));
    setting.seqlen = cell.seqlen;
    setting.backend = cell.backend;
    setting.kernel = cell.kernel;
    setting.group = cell.model;
    setting.unit = cell.task;
    setting.error = *lost;
    setting.compute_density = *cell.compute_density;
    setting.total_ms = cell.attention_and_planning_ms;
    setting.speedup_vs_dense = share(dense->attention_and_planning_ms, setting.total_ms);
  }
  return settings;
}

}  // namespace

const ErrorMetric& error_metric(ErrorOn on) {
  for (const ErrorMetric& metric : error_metrics()) {
    if (metric.on == on) return metric;
  }
  throw Error("unknown error metric");
}

const ErrorMetric& parse_error_metric(const std::string& name) {
  std::vector<std::string> names;
  for (const ErrorMetric& metric : error_metrics()) {
    if (metric.name == name) return metric;
    names.push_back(metric.name);
  }
  throw ConfigError(fmt::format("--on {}: expected one of {}", name, join(names)));
}

std::vector<UnitSetting> unit_settings(const ResultTable& table, ErrorOn on,
                                       const CurveOptions& options) {
  return on == ErrorOn::kAccuracy ? of_accuracy(table, options) : of_rows(table, on, options);
}

}  // namespace s2o
