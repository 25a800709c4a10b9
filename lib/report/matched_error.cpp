#include "lib/report/matched_error.h"

#include <fmt/format.h>

#include <algorithm>
#include <functional>
#include <tuple>

#include "lib/core/error.h"
#include "lib/core/text.h"
#include "lib/report/cost_at_error.h"
#include "lib/report/latency_sections.h"
#include "lib/report/retrieval_cells.h"

namespace s2o {
namespace {

// The settings of one method in one unit, by family.
using Families = std::map<std::string, std::vector<const UnitSetting*>>;

struct Fastest {
  double total_ms = 0.0;
  double compute_density = 0.0;
  double dense_ms = 0.0;  // 0 where dense was not timed
  std::string family;
};

std::optional<Fastest> fastest_in(const Families& families, double target) {
  std::optional<Fastest> best;
  for (const auto& [label, settings] : families) {
    std::vector<CostPoint> curve;
    double dense_ms = 0.0;
    for (const UnitSetting* setting : settings) {
      if (!setting->total_ms) continue;
      curve.push_back(
          {setting->knob, setting->error, *setting->total_ms, setting->compute_density});
      if (setting->speedup_vs_dense) dense_ms = *setting->speedup_vs_dense * *setting->total_ms;
    }
    const std::optional<CostAtError> at = cost_at_error(std::move(curve), target);
    if (!at || (best && best->total_ms <= at->cost)) continue;
    best = {at->cost, at->other, dense_ms, label};
  }
  return best;
}

std::optional<double> least_density_in(const Families& families, double target) {
  std::optional<double> least;
  for (const auto& [label, settings] : families) {
    std::vector<CostPoint> curve;
    for (const UnitSetting* setting : settings) {
      curve.push_back({setting->knob, setting->error, setting->compute_density, 0.0});
    }
    const std::optional<CostAtError> at = cost_at_error(std::move(curve), target);
    if (at && (!least || at->cost < *least)) least = at->cost;
  }
  return least;
}

std::map<std::string, double> peer_ms(const UnitSetting& like, const std::vector<PeerTime>& peers) {
  std::map<std::string, double> times;
  for (const PeerTime& time : peers) {
    if (std::tie(time.seqlen, time.num_q_heads, time.num_kv_heads, time.head_dim) ==
        std::tie(like.seqlen, like.num_q_heads, like.num_kv_heads, like.head_dim)) {
      times[time.peer] = time.ms;
    }
  }
  return times;
}

MatchedErrorCell match_cell(const std::map<std::string, Families>& units, double target,
                            const std::vector<PeerTime>& peers) {
  MatchedErrorCell cell;
  std::vector<double> speedups, totals, densities, least;
  std::map<std::string, std::vector<double>> over_peers;
  for (const auto& [unit, families] : units) {
    const std::optional<double> sparsest = least_density_in(families, target);
    if (sparsest) least.push_back(*sparsest);
    const std::optional<Fastest> fastest = fastest_in(families, target);
    if (!fastest) continue;
    ++cell.families[fastest->family];
    totals.push_back(fastest->total_ms);
    if (fastest->compute_density > 0.0) densities.push_back(fastest->compute_density);
    if (fastest->dense_ms > 0.0) speedups.push_back(fastest->dense_ms / fastest->total_ms);
    const UnitSetting& any = *families.begin()->second.front();
    for (const auto& [peer, ms] : peer_ms(any, peers)) {
      over_peers[peer].push_back(ms / fastest->total_ms);
    }
  }
  cell.speedup_vs_dense = geometric_mean(speedups);
  cell.total_ms = geometric_mean(totals);
  cell.compute_density = geometric_mean(densities);
  cell.least_density = geometric_mean(least);
  for (const auto& [peer, ratios] : over_peers) cell.speedup_vs_peer[peer] = geometric_mean(ratios);
  return cell;
}

bool belongs(const MatchedErrorGroup& group, const UnitSetting& setting) {
  return std::tie(group.seqlen, group.name, group.backend, group.kernel) ==
         std::tie(setting.seqlen, setting.group, setting.backend, setting.kernel);
}

void add_once(std::vector<std::string>& list, const std::string& name) {
  if (std::find(list.begin(), list.end(), name) == list.end()) list.push_back(name);
}

// ---- layout ----

ReportCell counted_cell(const GeometricMean& mean, std::size_t num_units) {
  ReportCell cell = number_cell(mean.value);
  if (mean.value && static_cast<std::size_t>(mean.count) < num_units) {
    cell.text += fmt::format(" ({})", mean.count);
  }
  return cell;
}

GeometricMean over_peer(const MatchedErrorCell& cell, const std::string& peer) {
  const auto found = cell.speedup_vs_peer.find(peer);
  return found == cell.speedup_vs_peer.end() ? GeometricMean() : found->second;
}

// One quantity of a cell, a column a target.
struct Quantity {
  std::string name;   // of the table, after "matched_error"
  std::string title;  // "Speed-up over dense"
  std::function<GeometricMean(const MatchedErrorCell& cell)> of;
};

std::vector<Quantity> quantities_of(const std::vector<MatchedErrorGroup>& groups,
                                    const std::vector<PeerTime>& peers) {
  using Cell = MatchedErrorCell;
  std::vector<Quantity> all = {
      {"", "Speed-up over dense", &Cell::speedup_vs_dense},
      {"_density", "Compute density of the fastest setting", &Cell::compute_density},
      {"_least_density", "Least compute density", &Cell::least_density}};
  for (const std::string& peer : peer_names(peers)) {
    all.push_back({"_" + peer, "Speed-up over " + peer,
                   [peer](const Cell& cell) { return over_peer(cell, peer); }});
  }
  // Without times, or peers of these shapes, there is nothing to show.
  std::erase_if(all, [&groups](const Quantity& quantity) {
    for (const MatchedErrorGroup& group : groups) {
      for (const auto& row : group.cells) {
        for (const Cell& cell : row) {
          if (quantity.of(cell).value) return false;
        }
      }
    }
    return true;
  });
  return all;
}

ReportTable wide_table(const MatchedErrorGroup& group, const Quantity& quantity,
                       const ErrorMetric& metric, const std::vector<double>& targets) {
  ReportTable table{"matched_error" + quantity.name,
                    fmt::format("{} at {} of at most: {}, {} tokens, {}", quantity.title,
                                metric.title, group.name, group.seqlen, group.kernel),
                    {{"method", "", true}},
                    {},
                    {}};
  for (const double target : targets) table.columns.push_back({fmt::format("{:g}", target), ""});
  for (std::size_t m = 0; m < group.methods.size(); ++m) {
    std::vector<ReportCell> row = {text_cell(group.methods[m])};
    for (const MatchedErrorCell& cell : group.cells[m]) {
      row.push_back(counted_cell(quantity.of(cell), group.units.size()));
    }
    table.rows.push_back(std::move(row));
  }
  return table;
}

std::string families_text(const MatchedErrorCell& cell) {
  std::vector<std::string> parts;
  for (const auto& [label, count] : cell.families) {
    parts.push_back(cell.families.size() == 1 ? label : fmt::format("{} ({})", label, count));
  }
  return join(parts, "; ");
}

ReportTable long_table(const std::vector<MatchedErrorGroup>& groups, const ErrorMetric& metric,
                       const std::vector<double>& targets, const std::vector<PeerTime>& peers) {
  ReportTable table{"matched_error",
                    "Methods at equal error",
                    {{"input", ""},
                     {"seqlen", ""},
                     {"backend", ""},
                     {"kernel", ""},
                     {"on", ""},
                     {"target", ""},
                     {"method", ""},
                     {"speedup_vs_dense", ""},
                     {"total_latency_ms", ""},
                     {"compute_density", ""},
                     {"units", ""},
                     {"least_density", ""},
                     {"least_density_units", ""},
                     {"total_units", ""},
                     {"settings", ""}},
                    {},
                    {}};
  const std::set<std::string> names = peer_names(peers);
  for (const std::string& peer : names) table.columns.push_back({"speedup_vs_" + peer, ""});
  for (const MatchedErrorGroup& group : groups) {
    for (std::size_t m = 0; m < group.methods.size(); ++m) {
      for (std::size_t t = 0; t < targets.size(); ++t) {
        const MatchedErrorCell& cell = group.cells[m][t];
        table.rows.push_back(
            {text_cell(group.name), integer_cell(group.seqlen), text_cell(group.backend),
             text_cell(group.kernel), text_cell(metric.name), number_cell(targets[t]),
             text_cell(group.methods[m]), number_cell(cell.speedup_vs_dense.value),
             number_cell(cell.total_ms.value), number_cell(cell.compute_density.value),
             integer_cell(cell.total_ms.count), number_cell(cell.least_density.value),
             integer_cell(cell.least_density.count),
             integer_cell(static_cast<std::int64_t>(group.units.size())),
             text_cell(families_text(cell))});
        for (const std::string& peer : names) {
          table.rows.back().push_back(number_cell(over_peer(cell, peer).value));
        }
      }
    }
  }
  return table;
}

std::vector<std::string> notes_of(const std::vector<MatchedErrorGroup>& groups,
                                  const std::vector<PeerTime>& peers) {
  std::vector<std::string> notes = {
      "In each unit a method's fastest setting (planning included) that errs at most this much, on "
      "the lower envelope of all its settings, interpolated along their knob in log-log, never "
      "extrapolated; geometric mean over units. (n): only n units reach the target, so that the "
      "mean is not comparable with its neighbours; n/a: none does. Oracles have no time. Least "
      "density: of the sparsest such setting instead."};
  for (const MatchedErrorGroup& group : groups) {
    notes.push_back(fmt::format("{}, {} tokens: {} units: {}", group.name, group.seqlen,
                                group.units.size(), join(group.units, ", ")));
  }
  if (!peers.empty()) {
    notes.push_back(
        "Over torch_*: dense attention of PyTorch, timed apart (scripts/bench_peers.py) on random "
        "tensors of the same shape.");
  }
  return notes;
}

// There is nothing to compare: says why.
[[noreturn]] void refuse(const ResultTable& table, const ErrorMetric& metric,
                         const CurveOptions& options) {
  const std::vector<RetrievalCell> cells = metric.on == ErrorOn::kAccuracy
                                               ? retrieval_cells(table, options)
                                               : std::vector<RetrievalCell>{};
  std::vector<std::string> dense;
  for (const RetrievalCell& cell : cells) {
    if (!is_dense_reference(cell.method, cell.params)) continue;
    dense.push_back(fmt::format("{} of {} tokens {} of {}", cell.task, cell.seqlen,
                                cell.exact.successes, cell.exact.trials));
  }
  if (!cells.empty()) {
    throw ConfigError(fmt::format(
        "accuracy: no task of the results has a sparse method beside dense attention that answers "
        "half of the prompts (dense: {}), so that there is nothing to lose",
        dense.empty() ? "not run" : join(dense)));
  }
  throw ConfigError(
      fmt::format("the results hold no sparse method with {} and a density ({} rows); it is "
                  "measured by `s2o {}`{}",
                  metric.name, table.rows.size(), metric.is_of_attention ? "eval" : "prefill",
                  metric.on == ErrorOn::kAccuracy ? " on a prompt file" : ""));
}

}  // namespace

std::vector<MatchedErrorGroup> match_errors(std::vector<UnitSetting> settings,
                                            const std::vector<double>& targets,
                                            const std::vector<PeerTime>& peers) {
  std::vector<MatchedErrorGroup> groups;
  std::vector<const UnitSetting*> by_rank;
  for (const UnitSetting& setting : settings) {
    by_rank.push_back(&setting);
    const bool is_known =
        std::any_of(groups.begin(), groups.end(),
                    [&setting](const MatchedErrorGroup& group) { return belongs(group, setting); });
    if (!is_known) {
      groups.push_back(
          {setting.group, setting.seqlen, setting.backend, setting.kernel, {}, {}, {}});
    }
  }
  std::stable_sort(groups.begin(), groups.end(),
                   [](const auto& a, const auto& b) { return a.seqlen < b.seqlen; });
  std::stable_sort(by_rank.begin(), by_rank.end(),
                   [](const auto* a, const auto* b) { return a->rank < b->rank; });
  for (MatchedErrorGroup& group : groups) {
    std::map<std::string, std::map<std::string, Families>> methods;  // method, unit, family
    for (const UnitSetting* setting : by_rank) {
      if (!belongs(group, *setting)) continue;
      add_once(group.units, setting->unit);
      add_once(group.methods, setting->method);
      methods[setting->method][setting->unit][setting->label].push_back(setting);
    }
    for (const std::string& method : group.methods) {
      std::vector<MatchedErrorCell>& row = group.cells.emplace_back();
      for (const double target : targets) {
        row.push_back(match_cell(methods[method], target, peers));
      }
    }
  }
  return groups;
}

Report matched_error_report(const ResultTable& table, ErrorOn on, const MatchOptions& options) {
  const ErrorMetric& metric = error_metric(on);
  const std::vector<double>& targets = options.errors.empty() ? metric.levels : options.errors;
  if (targets.empty()) throw ConfigError("time at equal MSE needs --errors: the MSE to compare at");
  std::vector<UnitSetting> settings = unit_settings(table, on, options.curves);
  if (options.by_family) {
    for (UnitSetting& setting : settings) setting.method = setting.label;
  }
  const std::vector<MatchedErrorGroup> groups =
      match_errors(std::move(settings), targets, options.peers);
  if (groups.empty()) refuse(table, metric, options.curves);
  Report report;
  for (const MatchedErrorGroup& group : groups) {
    for (const Quantity& quantity : quantities_of(groups, options.peers)) {
      report.view.push_back(wide_table(group, quantity, metric, targets));
    }
  }
  report.data = {long_table(groups, metric, targets, options.peers)};
  if (report.view.empty()) report.view = report.data;  // no method reaches any of the targets
  report.view.back().notes = notes_of(groups, options.peers);
  report.data.back().notes = report.view.back().notes;
  return report;
}

}  // namespace s2o
