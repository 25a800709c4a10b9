// Where the time goes: planning and attention of every setting, what an error costs each method,
// how times grow, and from which length on a setting is faster than dense attention.
#include <fmt/format.h>

#include <cmath>
#include <iterator>

#include "lib/core/error.h"
#include "lib/report/latency_sections.h"
#include "lib/report/matched_error.h"
#include "lib/report/paper_table.h"

namespace s2o {
namespace {

// Whether every parameter has its default.
ReportCell default_cell(const Setting& setting, const CurveOptions& curves) {
  const bool is_default =
      changed_keys(setting.params, curves.facts(setting.method).defaults).empty();
  return {is_default ? "yes" : "", is_default};
}

ReportTable latency_table(const std::vector<Setting>& settings, const std::vector<PeerTime>& times,
                          const CurveOptions& curves, std::size_t num_rows) {
  const std::set<std::string> peers = peer_names(times);
  ReportTable latency{"latency",
                      "Latency by setting",
                      {{"seqlen", ""},
                       {"backend", "", true},
                       {"kernel", "", true},
                       {"planner", "", true},
                       {"method", "", true},
                       {"default", "", true},
                       {"compute_density", ""},
                       {"relative_l2", ""},
                       {"plan_latency_ms", ""},
                       {"attention_latency_ms", ""},
                       {"total_latency_ms", ""},
                       {"plan_share", ""},
                       {"speedup_vs_dense", ""}},
                      {},
                      {}};
  for (const std::string& peer : peers) latency.columns.push_back({"speedup_vs_" + peer, ""});
  latency.columns.push_back({"peak_workspace_bytes", ""});
  latency.columns.push_back({"rows", ""});
  for (const Setting& setting : settings) {
    const std::optional<double> plan = mean_metric(setting, "plan_latency_ms");
    const std::optional<double> total = mean_metric(setting, "total_latency_ms");
    if (!total) continue;  // not timed
    latency.rows.push_back({integer_cell(setting.seqlen), text_cell(setting.backend),
                            text_cell(setting.kernel), text_cell(setting.rows.front()->planner),
                            text_cell(setting.full_label()), default_cell(setting, curves),
                            fixed_cell(mean_metric(setting, "compute_density"), 3),
                            number_cell(mean_metric(setting, "relative_l2")), number_cell(plan, 4),
                            number_cell(mean_metric(setting, "attention_latency_ms"), 4),
                            number_cell(total, 4), fixed_cell(share(plan, total), 3),
                            number_cell(geometric_mean_metric(setting, "speedup_vs_dense"))});
    std::vector<ReportCell>& row = latency.rows.back();
    for (const std::string& peer : peers) {
      row.push_back(number_cell(speedup_over_peer(setting, peer, times)));
    }
    row.push_back(number_cell(mean_metric(setting, "peak_workspace_bytes")));
    row.push_back(integer_cell(static_cast<std::int64_t>(setting.rows.size())));
  }
  if (latency.rows.empty()) {
    throw ConfigError(
        fmt::format("the results hold no latencies ({} rows); run eval with timing", num_rows));
  }
  latency.notes = {
      "Means over the rows of a setting (one per input and layer) of each row's median; "
      "speedup_vs_dense: geometric mean, planning included; plan_share: planning / total; planner: "
      "where plans were made (none: a plan of the shape alone, made once); default: every "
      "parameter as in `s2o list methods`. Planning of an oracle means nothing.",
      coverage_text(settings)};
  if (!peers.empty()) {
    latency.notes.push_back(
        "speedup_vs_torch_*: dense attention of PyTorch, timed apart (scripts/bench_peers.py) on "
        "random tensors of the same shape, over the total.");
  }
  return latency;
}

// Length and speed-up over dense at each.
std::vector<std::pair<double, double>> speedups_of(const LengthSeries& series) {
  std::vector<std::pair<double, double>> points;
  for (const Setting* setting : series.settings) {
    const std::optional<double> speedup = geometric_mean_metric(*setting, "speedup_vs_dense");
    if (!speedup || *speedup <= 0.0) continue;
    points.emplace_back(static_cast<double>(setting->seqlen), *speedup);
  }
  return points;
}

// The length from which on the setting stays faster than dense attention, between the two measured
// lengths around it on straight lines in log-log; "<= N" when it is so everywhere.
ReportCell break_even_cell(const std::vector<std::pair<double, double>>& points) {
  std::size_t first = points.size();  // of the lengths at which it is faster from here on
  while (first > 0 && points[first - 1].second > 1.0) --first;
  if (first == points.size()) return missing_cell();
  if (first == 0) {
    const auto length = static_cast<std::int64_t>(points[0].first);
    return {fmt::format("<= {}", length), length};
  }
  const auto [n0, s0] = points[first - 1];
  const auto [n1, s1] = points[first];
  const double part = (0.0 - std::log(s0)) / (std::log(s1) - std::log(s0));
  return integer_cell(std::llround(n0 * std::pow(n1 / n0, part)));
}

ReportTable break_even_table(const std::vector<Setting>& settings) {
  ReportTable table{"break_even",
                    "Break-even length",
                    {{"backend", "", true},
                     {"kernel", "", true},
                     {"method", "", true},
                     {"break_even_seqlen", ""},
                     {"longest_seqlen", ""},
                     {"speedup_at_longest", ""}},
                    {},
                    {}};
  for (const LengthSeries& series : series_by_length(settings, "speedup_vs_dense")) {
    const std::vector<std::pair<double, double>> points = speedups_of(series);
    if (points.size() < 2) continue;
    if (is_dense_reference(series.first->method, series.first->params)) continue;
    table.rows.push_back({text_cell(series.first->backend), text_cell(series.first->kernel),
                          text_cell(series.first->full_label()), break_even_cell(points),
                          integer_cell(static_cast<std::int64_t>(points.back().first)),
                          number_cell(points.back().second)});
  }
  table.notes = {
      "break_even_seqlen: from here on a setting, planning included, is faster than our dense "
      "attention at every longer length measured; interpolated between measured lengths (log-log), "
      "<= where it is faster at all of them, n/a where it is slower at the longest."};
  return table;
}

void add_section(Report& report, ReportTable section) {
  if (section.rows.empty()) return;
  report.data.push_back(section);
  report.view.push_back(std::move(section));
}

// Nothing where no sparse method was run.
void add_matched_errors(Report& report, const ResultTable& table, const MatchOptions& options) {
  if (unit_settings(table, ErrorOn::kRelativeL2, options.curves).empty()) return;
  Report matched = matched_error_report(table, ErrorOn::kRelativeL2, options);
  std::move(matched.view.begin(), matched.view.end(), std::back_inserter(report.view));
  std::move(matched.data.begin(), matched.data.end(), std::back_inserter(report.data));
}

Report build_latency(const ResultTable& table, const MatchOptions& options) {
  const std::vector<Setting> settings = group_settings(table, RowKind::kAttention, options.curves);
  Report report;
  add_section(report, latency_table(settings, options.peers, options.curves, table.rows.size()));
  add_matched_errors(report, table, options);
  add_section(report, break_even_table(settings));
  add_section(report, growth_table(settings));
  add_section(report, planning_cost_table(settings));
  return report;
}

}  // namespace

const PaperTable& table_latency() {
  static const PaperTable table{
      "latency", "Time of every setting; the fastest at an error, break-even lengths, growth",
      build_latency};
  return table;
}

}  // namespace s2o
