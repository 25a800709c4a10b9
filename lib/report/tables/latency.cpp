// Where the time goes: planning and attention of every setting, and from which length on a setting
// is faster than dense attention.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <set>

#include "lib/core/error.h"
#include "lib/report/paper_table.h"
#include "lib/report/settings.h"

namespace s2o {
namespace {

std::optional<double> share(std::optional<double> part, std::optional<double> whole) {
  if (!part || !whole || *whole <= 0.0) return std::nullopt;
  return *part / *whole;
}

// The peer's time over the setting's total, for rows of its shape; empty without both.
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

ReportTable latency_table(const std::vector<Setting>& settings, const std::vector<PeerTime>& times,
                          std::size_t num_rows) {
  std::set<std::string> peers;
  for (const PeerTime& time : times) peers.insert(time.peer);
  ReportTable latency{"latency",
                      "Latency by setting",
                      {{"seqlen", ""},
                       {"backend", "", true},
                       {"kernel", "", true},
                       {"planner", "", true},
                       {"method", "", true},
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
                            text_cell(setting.full_label()),
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
      "where plans were made. Planning of an oracle means nothing.",
      coverage_text(settings)};
  if (!peers.empty()) {
    latency.notes.push_back(
        "speedup_vs_torch_*: dense attention of PyTorch, timed apart (scripts/bench_peers.py) on "
        "random tensors of the same shape, over the total.");
  }
  return latency;
}

// One setting at every length where it was timed, ascending.
struct LengthSeries {
  const Setting* first = nullptr;
  std::vector<std::pair<double, double>> points;  // seqlen, speed-up over dense
};

std::vector<LengthSeries> series_by_length(const std::vector<Setting>& settings) {
  std::vector<LengthSeries> all;
  for (const Setting& setting : settings) {
    const std::optional<double> speedup = geometric_mean_metric(setting, "speedup_vs_dense");
    if (!speedup || *speedup <= 0.0 || setting.method == "dense") continue;
    const auto same = std::find_if(all.begin(), all.end(), [&setting](const LengthSeries& series) {
      return series.first->full_label() == setting.full_label() &&
             series.first->backend == setting.backend && series.first->kernel == setting.kernel;
    });
    LengthSeries& series = same == all.end() ? all.emplace_back() : *same;
    if (series.first == nullptr) series.first = &setting;
    series.points.emplace_back(static_cast<double>(setting.seqlen), *speedup);
  }
  for (LengthSeries& series : all) std::sort(series.points.begin(), series.points.end());
  return all;
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
  for (const LengthSeries& series : series_by_length(settings)) {
    if (series.points.size() < 2) continue;
    table.rows.push_back({text_cell(series.first->backend), text_cell(series.first->kernel),
                          text_cell(series.first->full_label()), break_even_cell(series.points),
                          integer_cell(static_cast<std::int64_t>(series.points.back().first)),
                          number_cell(series.points.back().second)});
  }
  table.notes = {
      "break_even_seqlen: from here on a setting, planning included, is faster than our dense "
      "attention at every longer length measured; interpolated between measured lengths (log-log), "
      "<= where it is faster at all of them, n/a where it is slower at the longest."};
  return table;
}

Report build_latency(const ResultTable& table, const MatchOptions& options) {
  const std::vector<Setting> settings = group_settings(table, options.curves);
  Report report{{latency_table(settings, options.peers, table.rows.size())}, {}};
  ReportTable break_even = break_even_table(settings);
  if (!break_even.rows.empty()) report.view.push_back(std::move(break_even));
  return report;
}

}  // namespace

const PaperTable& table_latency() {
  static const PaperTable table{
      "latency", "Planning, attention and total time of every setting; break-even lengths",
      build_latency};
  return table;
}

}  // namespace s2o
