#include "lib/report/settings.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <set>
#include <tuple>

#include "lib/core/error.h"
#include "lib/core/text.h"

namespace s2o {
namespace {

using nlohmann::ordered_json;

std::vector<double> metric_values(const Setting& setting, const std::string& metric) {
  std::vector<double> values;
  for (const ResultRow* row : setting.rows) {
    if (const std::optional<double> value = row_metric(*row, metric)) values.push_back(*value);
  }
  return values;
}

struct Grouping {
  std::vector<Setting> settings;
  std::vector<int> ranks;  // of each setting's method
};

Grouping group_rows(const ResultTable& table, RowKind kind, const CurveOptions& options) {
  Grouping grouping;
  std::map<std::string, std::size_t> index;
  for (const ResultRow& row : table.rows) {
    if (row.kind != kind || row.error) continue;
    const std::string key = fmt::format("{}\n{}\n{}\n{}\n{}\n{}", row.seqlen, row.backend,
                                        row.kernel, gpus_of(row), row.method, row.params.dump());
    const auto [place, is_new] = index.try_emplace(key, grouping.settings.size());
    if (is_new) {
      MethodFacts facts = options.facts(row.method);
      const auto override_knob = options.knobs.find(row.method);
      if (override_knob != options.knobs.end()) facts.knob = override_knob->second;
      Setting setting;
      setting.method = row.method;
      setting.params = row.params;
      setting.label = setting_label(row.method, row.params, facts);
      setting.knob = facts.knob;
      if (row.params.contains(setting.knob)) setting.knob_value = row.params.at(setting.knob);
      setting.seqlen = row.seqlen;
      setting.backend = row.backend;
      setting.kernel = row.kernel;
      setting.gpus = gpus_of(row);
      grouping.settings.push_back(std::move(setting));
      grouping.ranks.push_back(facts.rank);
    }
    grouping.settings[place->second].rows.push_back(&row);
  }
  return grouping;
}

}  // namespace

std::string Setting::full_label() const {
  return knob_value.is_null() ? label : label + " " + params_label(params, {knob});
}

std::vector<Setting> group_settings(const ResultTable& table, RowKind kind,
                                    const CurveOptions& options) {
  Grouping grouping = group_rows(table, kind, options);
  std::map<std::string, std::size_t> first_appearance;
  for (std::size_t i = 0; i < grouping.settings.size(); ++i) {
    first_appearance.try_emplace(grouping.settings[i].label, i);
  }
  using Key = std::tuple<std::int64_t, std::string, int, std::size_t, double, std::size_t>;
  std::vector<Key> keys;
  for (std::size_t i = 0; i < grouping.settings.size(); ++i) {
    const Setting& setting = grouping.settings[i];
    const double density = mean_metric(setting, "compute_density").value_or(0.0);
    keys.emplace_back(setting.seqlen, setting.backend, grouping.ranks[i],
                      first_appearance[setting.label], -density, i);
  }
  std::sort(keys.begin(), keys.end());
  std::vector<Setting> sorted;
  for (const Key& key : keys) sorted.push_back(std::move(grouping.settings[std::get<5>(key)]));
  return sorted;
}

std::optional<double> mean_metric(const Setting& setting, const std::string& metric) {
  const std::vector<double> values = metric_values(setting, metric);
  if (values.empty()) return std::nullopt;
  double sum = 0.0;
  for (double value : values) sum += value;
  return sum / static_cast<double>(values.size());
}

std::optional<double> geometric_mean_metric(const Setting& setting, const std::string& metric) {
  const std::vector<double> values = metric_values(setting, metric);
  if (values.empty()) return std::nullopt;
  double sum = 0.0;
  for (double value : values) {
    if (value <= 0.0) return 0.0;
    sum += std::log(value);
  }
  return std::exp(sum / static_cast<double>(values.size()));
}

std::optional<double> row_metric(const ResultRow& row, const std::string& metric) {
  const auto found = row.metrics.find(metric);
  return found == row.metrics.end() ? std::nullopt : found->second;
}

int gpus_of(const ResultRow& row) {
  return static_cast<int>(row_metric(row, "gpus").value_or(1.0));
}

void require_settings(const std::vector<Setting>& settings, const ResultTable& table,
                      const std::string& what) {
  if (!settings.empty()) return;
  const auto failed = std::count_if(table.rows.begin(), table.rows.end(),
                                    [](const ResultRow& row) { return row.error.has_value(); });
  throw ConfigError(fmt::format("the results hold no {} ({} rows, {} of them failed)", what,
                                table.rows.size(), failed));
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
  std::vector<std::string> layer_names;
  for (int layer : layers) layer_names.push_back(fmt::format("{}", layer));
  return fmt::format("layers {}; inputs {}", join(layer_names, ","),
                     join(std::vector<std::string>(inputs.begin(), inputs.end())));
}

}  // namespace s2o
