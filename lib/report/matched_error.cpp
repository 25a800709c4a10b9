#include <fmt/format.h>

#include <algorithm>
#include <tuple>

#include "lib/report/latency_sections.h"

namespace s2o {
namespace {

struct Measured {
  const Setting* setting = nullptr;
  double error = 0.0;
  double total_ms = 0.0;
};

// What a method was measured with at one length.
struct Candidates {
  std::int64_t seqlen = 0;
  std::string backend;
  std::string kernel;
  std::string method;
  std::vector<Measured> measured;
};

// Rows of the setting with the most at this length: one for every input and layer.
std::size_t most_rows(const std::vector<Setting>& settings, const Setting& like) {
  std::size_t most = 0;
  for (const Setting& setting : settings) {
    if (std::tie(setting.seqlen, setting.backend, setting.kernel) ==
        std::tie(like.seqlen, like.backend, like.kernel)) {
      most = std::max(most, setting.rows.size());
    }
  }
  return most;
}

// In the order of settings, which is that of methods.def within a length. A setting that was not
// run on every input is no candidate: its mean may be over the easier ones.
std::vector<Candidates> candidates_of(const std::vector<Setting>& settings) {
  std::vector<Candidates> all;
  for (const Setting& setting : settings) {
    const std::optional<double> error = mean_metric(setting, "relative_l2");
    const std::optional<double> total = mean_metric(setting, "total_latency_ms");
    if (!error || !total || setting.method == "dense") continue;
    const auto same = std::find_if(all.begin(), all.end(), [&setting](const Candidates& other) {
      return std::tie(other.seqlen, other.backend, other.kernel, other.method) ==
             std::tie(setting.seqlen, setting.backend, setting.kernel, setting.method);
    });
    Candidates& candidates = same == all.end() ? all.emplace_back() : *same;
    if (candidates.method.empty()) {
      candidates = {setting.seqlen, setting.backend, setting.kernel, setting.method, {}};
    }
    if (setting.rows.size() < most_rows(settings, setting)) continue;
    candidates.measured.push_back({&setting, *error, *total});
  }
  return all;
}

// The fastest that errs at most `target`; null without one.
const Measured* fastest_within(const Candidates& candidates, double target) {
  const Measured* best = nullptr;
  for (const Measured& measured : candidates.measured) {
    if (measured.error > target) continue;
    if (best == nullptr || measured.total_ms < best->total_ms) best = &measured;
  }
  return best;
}

// Setting and error of a method that does not reach the target.
std::vector<ReportCell> not_reached(const Candidates& candidates) {
  if (candidates.measured.empty()) {
    return {text_cell("not measured on every input"), missing_cell()};
  }
  const Measured& closest =
      *std::min_element(candidates.measured.begin(), candidates.measured.end(),
                        [](const Measured& a, const Measured& b) { return a.error < b.error; });
  return {text_cell(fmt::format("not reached; closest: {}", closest.setting->full_label())),
          number_cell(closest.error)};
}

std::vector<ReportCell> row_of(const Candidates& candidates, double target,
                               const std::vector<PeerTime>& times) {
  std::vector<ReportCell> row = {integer_cell(candidates.seqlen), text_cell(candidates.backend),
                                 text_cell(candidates.kernel), number_cell(target),
                                 text_cell(candidates.method)};
  const Measured* best = fastest_within(candidates, target);
  const std::size_t num_peers = peer_names(times).size();
  if (best == nullptr) {
    for (ReportCell& cell : not_reached(candidates)) row.push_back(std::move(cell));
    row.resize(row.size() + 6 + num_peers, missing_cell());
    return row;
  }
  const Setting& setting = *best->setting;
  const std::optional<double> plan = mean_metric(setting, "plan_latency_ms");
  row.insert(row.end(),
             {text_cell(setting.full_label()), number_cell(best->error),
              fixed_cell(mean_metric(setting, "compute_density"), 3), number_cell(plan, 4),
              number_cell(mean_metric(setting, "attention_latency_ms"), 4),
              number_cell(best->total_ms, 4), fixed_cell(share(plan, best->total_ms), 3),
              number_cell(geometric_mean_metric(setting, "speedup_vs_dense"))});
  for (const std::string& peer : peer_names(times)) {
    row.push_back(number_cell(speedup_over_peer(setting, peer, times)));
  }
  return row;
}

}  // namespace

ReportTable matched_error_table(const std::vector<Setting>& settings,
                                const std::vector<PeerTime>& times,
                                const std::vector<double>& targets) {
  ReportTable table{"matched_error_latency",
                    "Fastest setting at an error",
                    {{"seqlen", ""},
                     {"backend", "", true},
                     {"kernel", "", true},
                     {"target_relative_l2", ""},
                     {"method", "", true},
                     {"setting", "", true},
                     {"relative_l2", ""},
                     {"compute_density", ""},
                     {"plan_latency_ms", ""},
                     {"attention_latency_ms", ""},
                     {"total_latency_ms", ""},
                     {"plan_share", ""},
                     {"speedup_vs_dense", ""}},
                    {},
                    {}};
  for (const std::string& peer : peer_names(times)) {
    table.columns.push_back({"speedup_vs_" + peer, ""});
  }
  const std::vector<Candidates> all = candidates_of(settings);
  for (std::size_t begin = 0; begin < all.size();) {
    std::size_t end = begin;
    while (end < all.size() &&
           std::tie(all[end].seqlen, all[end].backend, all[end].kernel) ==
               std::tie(all[begin].seqlen, all[begin].backend, all[begin].kernel)) {
      ++end;
    }
    for (const double target : targets) {
      for (std::size_t i = begin; i < end; ++i) table.rows.push_back(row_of(all[i], target, times));
    }
    begin = end;
  }
  table.notes = {
      "For each method the measured setting with the smallest total (planning included) among "
      "those whose relative_l2 is at most the target; nothing is interpolated between settings, so "
      "a method with few settings may miss the target by more than it must. \"not reached\": no "
      "setting errs so little; relative_l2 is then the smallest error that the method was measured "
      "with. Settings that were not run on every input and layer of a length are left out."};
  return table;
}

}  // namespace s2o
