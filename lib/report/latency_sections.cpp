#include "lib/report/latency_sections.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <tuple>

#include "lib/core/text.h"

namespace s2o {
namespace {

// The lengths from which on growth is fitted: below, launches and small kernels blur it.
constexpr std::int64_t kGrowthFrom = 32768;

// Exponent of a power law through (length, time), by least squares in log-log.
std::optional<double> growth_exponent(const std::vector<const Setting*>& settings,
                                      const std::string& metric) {
  double n = 0.0;
  double sum_x = 0.0;
  double sum_y = 0.0;
  double sum_xx = 0.0;
  double sum_xy = 0.0;
  for (const Setting* setting : settings) {
    const std::optional<double> time = mean_metric(*setting, metric);
    if (!time || *time <= 0.0) return std::nullopt;
    const double x = std::log(static_cast<double>(setting->seqlen));
    const double y = std::log(*time);
    n += 1.0;
    sum_x += x;
    sum_y += y;
    sum_xx += x * x;
    sum_xy += x * y;
  }
  const double spread = n * sum_xx - sum_x * sum_x;
  if (n < 2.0 || spread <= 0.0) return std::nullopt;
  return (n * sum_xy - sum_x * sum_y) / spread;
}

// Planning of settings that cost the same.
struct CostGroup {
  const Setting* first = nullptr;
  double flops = 0.0;
  double bytes = 0.0;
  double sum_ms = 0.0;
  std::int64_t num_settings = 0;
};

std::vector<CostGroup> group_by_cost(const std::vector<Setting>& settings) {
  std::vector<CostGroup> groups;
  for (const Setting& setting : settings) {
    const std::optional<double> flops = mean_metric(setting, "plan_flops");
    const std::optional<double> bytes = mean_metric(setting, "plan_bytes");
    const std::optional<double> ms = mean_metric(setting, "plan_latency_ms");
    if (!flops || !bytes || !ms) continue;
    const auto same = std::find_if(groups.begin(), groups.end(), [&](const CostGroup& group) {
      const Setting& first = *group.first;
      return std::tie(first.seqlen, first.backend, first.kernel, first.label, group.flops,
                      group.bytes) == std::tie(setting.seqlen, setting.backend, setting.kernel,
                                               setting.label, *flops, *bytes);
    });
    CostGroup& group =
        same == groups.end() ? groups.emplace_back(CostGroup{&setting, *flops, *bytes}) : *same;
    group.sum_ms += *ms;
    ++group.num_settings;
  }
  return groups;
}

}  // namespace

std::set<std::string> peer_names(const std::vector<PeerTime>& times) {
  std::set<std::string> names;
  for (const PeerTime& time : times) names.insert(time.peer);
  return names;
}

std::optional<double> speedup_over_peer(const Setting& setting, const std::string& peer,
                                        const std::vector<PeerTime>& times) {
  const ResultRow& row = *setting.rows.front();
  const std::optional<double> total = mean_metric(setting, "total_latency_ms");
  for (const PeerTime& time : times) {
    if (time.peer == peer && time.seqlen == row.seqlen && time.num_q_heads == row.num_q_heads &&
        time.num_kv_heads == row.num_kv_heads && time.head_dim == row.head_dim) {
      return share(time.ms, total);
    }
  }
  return std::nullopt;
}

std::vector<LengthSeries> series_by_length(const std::vector<Setting>& settings,
                                           const std::string& metric) {
  std::vector<LengthSeries> all;
  for (const Setting& setting : settings) {
    const std::optional<double> value = mean_metric(setting, metric);
    if (!value || *value <= 0.0) continue;
    const auto same = std::find_if(all.begin(), all.end(), [&setting](const LengthSeries& series) {
      return series.first->full_label() == setting.full_label() &&
             series.first->backend == setting.backend && series.first->kernel == setting.kernel;
    });
    LengthSeries& series = same == all.end() ? all.emplace_back(LengthSeries{&setting, {}}) : *same;
    series.settings.push_back(&setting);
  }
  for (LengthSeries& series : all) {
    std::sort(series.settings.begin(), series.settings.end(),
              [](const Setting* a, const Setting* b) { return a->seqlen < b->seqlen; });
  }
  return all;
}

ReportTable growth_table(const std::vector<Setting>& settings) {
  ReportTable table{"growth",
                    "Growth of time with length",
                    {{"backend", "", true},
                     {"kernel", "", true},
                     {"planner", "", true},
                     {"method", "", true},
                     {"seqlens", "", true},
                     {"plan_exponent", ""},
                     {"attention_exponent", ""},
                     {"total_exponent", ""}},
                    {},
                    {}};
  for (const LengthSeries& series : series_by_length(settings, "total_latency_ms")) {
    std::vector<const Setting*> fitted;
    std::vector<std::string> lengths;
    for (const Setting* setting : series.settings) {
      if (setting->seqlen < kGrowthFrom) continue;
      fitted.push_back(setting);
      lengths.push_back(fmt::format("{}", setting->seqlen));
    }
    if (fitted.size() < 2) continue;
    table.rows.push_back({text_cell(series.first->backend), text_cell(series.first->kernel),
                          text_cell(series.first->rows.front()->planner),
                          text_cell(series.first->full_label()), text_cell(join(lengths, " ")),
                          fixed_cell(growth_exponent(fitted, "plan_latency_ms"), 2),
                          fixed_cell(growth_exponent(fitted, "attention_latency_ms"), 2),
                          fixed_cell(growth_exponent(fitted, "total_latency_ms"), 2)});
  }
  table.notes = {fmt::format(
      "Time ~ seqlen^exponent at fixed parameters: slope of least squares in log-log over the "
      "lengths named, those from {} on; dense attention grows by 2.",
      kGrowthFrom)};
  return table;
}

ReportTable planning_cost_table(const std::vector<Setting>& settings) {
  ReportTable table{"planning_cost",
                    "Planning: what it must do, and its time",
                    {{"seqlen", ""},
                     {"backend", "", true},
                     {"kernel", "", true},
                     {"method", "", true},
                     {"settings", ""},
                     {"plan_latency_ms", ""},
                     {"plan_flops", "GFLOP"},
                     {"plan_bytes", "GB"},
                     {"plan_tflops", "TFLOP/s"},
                     {"plan_bandwidth", "GB/s"}},
                    {},
                    {}};
  for (const CostGroup& group : group_by_cost(settings)) {
    const double ms = group.sum_ms / static_cast<double>(group.num_settings);
    table.rows.push_back({integer_cell(group.first->seqlen), text_cell(group.first->backend),
                          text_cell(group.first->kernel), text_cell(group.first->label),
                          integer_cell(group.num_settings), number_cell(ms, 4),
                          number_cell(1e-9 * group.flops), number_cell(1e-9 * group.bytes),
                          number_cell(share(1e-9 * group.flops, ms)),
                          number_cell(share(1e-6 * group.bytes, ms))});
  }
  table.notes = {
      "plan_flops, plan_bytes: what the method's definition requires of the device at least, as "
      "its planner counts it: products, means and sums; inputs read and plan arrays written and "
      "read once per use. Comparisons, exponentials and sorting are no FLOP here. The rates are "
      "these over the measured time, the mean of `settings` settings."};
  return table;
}

}  // namespace s2o
