#include "lib/report/settings.h"

#include <fmt/format.h>

#include <algorithm>
#include <numeric>
#include <tuple>

#include "lib/core/error.h"
#include "lib/report/geometric_mean.h"

namespace s2o {
namespace {

std::vector<double> metric_values(const Setting& setting, const std::string& metric) {
  std::vector<double> values;
  for (const ResultRow* row : setting.rows) {
    if (const std::optional<double> value = row_metric(*row, metric)) values.push_back(*value);
  }
  return values;
}

}  // namespace

std::string Setting::full_label() const {
  return knob_value.is_null() ? label : label + " " + params_label(params, {knob});
}

std::vector<Setting> group_settings(const ResultTable& table, RowKind kind,
                                    const CurveOptions& options) {
  std::vector<Setting> settings;
  std::map<std::string, std::size_t> index, label_order;
  for (const ResultRow& row : table.rows) {
    if (row.kind != kind || row.error) continue;
    const std::string key = fmt::format("{}\n{}\n{}\n{}\n{}\n{}", row.seqlen, row.backend,
                                        row.kernel, gpus_of(row), row.method, row.params.dump());
    const auto [place, is_new] = index.try_emplace(key, settings.size());
    if (is_new) {
      const MethodFacts facts = options.facts_of(row.method);
      Setting& setting = settings.emplace_back();
      setting.method = row.method;
      setting.params = row.params;
      setting.label = setting_label(row.method, row.params, facts);
      setting.knob = facts.knob;
      if (row.params.contains(setting.knob)) setting.knob_value = row.params.at(setting.knob);
      setting.seqlen = row.seqlen;
      setting.backend = row.backend;
      setting.kernel = row.kernel;
      setting.gpus = gpus_of(row);
      setting.rank = facts.rank;
      label_order.try_emplace(setting.label, place->second);
    }
    settings[place->second].rows.push_back(&row);
  }
  const auto key_of = [&label_order](const Setting& setting) {
    return std::tuple(setting.seqlen, setting.backend, setting.rank, label_order.at(setting.label),
                      -mean_metric(setting, "compute_density").value_or(0.0));
  };
  std::stable_sort(settings.begin(), settings.end(),
                   [&key_of](const Setting& a, const Setting& b) { return key_of(a) < key_of(b); });
  return settings;
}

std::optional<double> mean_metric(const Setting& setting, const std::string& metric) {
  const std::vector<double> values = metric_values(setting, metric);
  if (values.empty()) return std::nullopt;
  return std::accumulate(values.begin(), values.end(), 0.0) / static_cast<double>(values.size());
}

std::optional<double> geometric_mean_metric(const Setting& setting, const std::string& metric) {
  const std::vector<double> values = metric_values(setting, metric);
  if (std::ranges::any_of(values, [](double value) { return value <= 0.0; })) return 0.0;
  return geometric_mean(values).value;
}

std::optional<double> row_metric(const ResultRow& row, const std::string& metric) {
  const auto found = row.metrics.find(metric);
  return found == row.metrics.end() ? std::nullopt : found->second;
}

int gpus_of(const ResultRow& row) {
  return static_cast<int>(row_metric(row, "gpus").value_or(1.0));
}

std::optional<double> share(std::optional<double> part, std::optional<double> whole) {
  if (!part || !whole || *whole <= 0.0) return std::nullopt;
  return *part / *whole;
}

void require_settings(const std::vector<Setting>& settings, const ResultTable& table,
                      const std::string& what) {
  if (!settings.empty()) return;
  const auto failed = std::count_if(table.rows.begin(), table.rows.end(),
                                    [](const ResultRow& row) { return row.error.has_value(); });
  throw ConfigError(fmt::format("the results hold no {} ({} rows, {} of them failed)", what,
                                table.rows.size(), failed));
}

std::string coverage_text(const std::set<int>& layers, const std::set<std::string>& inputs) {
  return fmt::format("layers {}; inputs {}", fmt::join(layers, ","), fmt::join(inputs, ", "));
}

std::string coverage_text(const std::vector<Setting>& settings) {
  std::set<std::string> inputs;
  std::set<int> layers;
  for (const Setting& setting : settings) {
    for (const ResultRow* row : setting.rows) {
      inputs.insert(row->input);
      layers.insert(row->layer);
    }
  }
  return coverage_text(layers, inputs);
}

}  // namespace s2o
