// Table (e): how each method spreads its work over heads, and how deep S2O's tiles go.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <tuple>

#include "lib/core/error.h"
#include "lib/report/paper_table.h"
#include "lib/report/settings.h"

namespace s2o {
namespace {

// Of the settings of one label, the one whose mean density is nearest to `density`.
std::vector<Setting> nearest_settings(const std::vector<Setting>& settings, double density) {
  std::vector<Setting> nearest;
  const auto distance = [density](const Setting& setting) {
    return std::abs(mean_metric(setting, "compute_density").value_or(2.0) - density);
  };
  for (const Setting& setting : settings) {
    if (setting.knob_value.is_null()) continue;
    auto same = std::find_if(nearest.begin(), nearest.end(), [&](const Setting& other) {
      return std::tie(other.seqlen, other.backend, other.kernel, other.label) ==
             std::tie(setting.seqlen, setting.backend, setting.kernel, setting.label);
    });
    if (same == nearest.end()) {
      nearest.push_back(setting);
    } else if (distance(setting) < distance(*same)) {
      *same = setting;
    }
  }
  return nearest;
}

ReportTable density_table(const std::vector<Setting>& settings) {
  ReportTable table{"per_head",
                    "Compute density by head",
                    {{"seqlen", ""},
                     {"setting", "", true},
                     {"input", "", true},
                     {"layer", ""},
                     {"head", ""},
                     {"compute_density", ""},
                     {"mse", ""},
                     {"mass_recall", ""}},
                    {},
                    {}};
  const auto head_cell = [](const ResultRow& row, const std::string& name, std::size_t head,
                            bool fixed) {
    const auto found = row.per_head.find(name);
    if (found == row.per_head.end() || head >= found->second.size()) return missing_cell();
    return fixed ? fixed_cell(found->second[head], 4) : number_cell(found->second[head]);
  };
  for (const Setting& setting : settings) {
    for (const ResultRow* row : setting.rows) {
      const auto density = row->per_head.find("compute_density");
      const std::size_t heads = density == row->per_head.end() ? 0 : density->second.size();
      for (std::size_t head = 0; head < heads; ++head) {
        table.rows.push_back(
            {integer_cell(setting.seqlen), text_cell(setting.full_label()), text_cell(row->input),
             integer_cell(row->layer), integer_cell(static_cast<std::int64_t>(head)),
             head_cell(*row, "compute_density", head, true), head_cell(*row, "mse", head, false),
             head_cell(*row, "mass_recall", head, true)});
      }
    }
  }
  return table;
}

// Nearest-rank percentile of a sorted list.
std::int32_t percentile(const std::vector<std::int32_t>& sorted, double fraction) {
  const double rank = std::ceil(fraction * static_cast<double>(sorted.size()));
  return sorted[static_cast<std::size_t>(std::max(rank, 1.0)) - 1];
}

std::vector<ReportCell> stop_row(const Setting& setting, const ResultRow& row,
                                 std::size_t plan_head, std::vector<std::int32_t> steps) {
  std::sort(steps.begin(), steps.end());
  double sum = 0.0;
  for (std::int32_t step : steps) sum += step;
  return {integer_cell(setting.seqlen),
          text_cell(setting.full_label()),
          text_cell(row.input),
          integer_cell(row.layer),
          integer_cell(static_cast<std::int64_t>(plan_head)),
          integer_cell(static_cast<std::int64_t>(steps.size())),
          fixed_cell(sum / static_cast<double>(steps.size()), 1),
          integer_cell(percentile(steps, 0.1)),
          integer_cell(percentile(steps, 0.5)),
          integer_cell(percentile(steps, 0.9)),
          integer_cell(steps.back())};
}

// stop_steps is [num_plan_heads * num_q_tiles]; plan heads are query heads here.
ReportTable stop_table(const std::vector<Setting>& settings) {
  ReportTable table{"stop_depth",
                    "Steps of block_n history keys that a query tile takes before it stops",
                    {{"seqlen", ""},
                     {"setting", "", true},
                     {"input", "", true},
                     {"layer", ""},
                     {"head", ""},
                     {"tiles", ""},
                     {"mean", ""},
                     {"p10", ""},
                     {"median", ""},
                     {"p90", ""},
                     {"max", ""}},
                    {},
                    {"Tiles of the first segment have no history and count with 0 steps."}};
  for (const Setting& setting : settings) {
    for (const ResultRow* row : setting.rows) {
      const auto heads = static_cast<std::size_t>(std::max(row->num_q_heads, 1));
      if (row->stop_steps.empty() || row->stop_steps.size() % heads != 0) continue;
      const std::size_t tiles = row->stop_steps.size() / heads;
      for (std::size_t head = 0; head < heads; ++head) {
        const auto begin = row->stop_steps.begin() + static_cast<std::ptrdiff_t>(head * tiles);
        table.rows.push_back(
            stop_row(setting, *row, head, {begin, begin + static_cast<std::ptrdiff_t>(tiles)}));
      }
    }
  }
  return table;
}

Report build_per_head(const ResultTable& table, const MatchOptions& options) {
  const double sparsity = options.sparsity[options.sparsity.size() / 2];
  const std::vector<Setting> settings =
      nearest_settings(group_settings(table, RowKind::kAttention, options.curves), 1.0 - sparsity);
  ReportTable density = density_table(settings);
  if (density.rows.empty()) {
    throw ConfigError(
        "the results hold no per-head vectors; read results.h5 or its folder instead of "
        "results.json");
  }
  density.notes = {
      fmt::format("Of each method, the setting whose mean density is nearest to {:g} "
                  "(sparsity {:g}).",
                  1.0 - sparsity, sparsity)};
  ReportTable stops = stop_table(settings);
  Report report{{std::move(density)}, {}};
  if (!stops.rows.empty()) report.view.push_back(std::move(stops));
  return report;
}

}  // namespace

const PaperTable& table_per_head() {
  static const PaperTable table{
      "per_head", "Density, MSE and recall of every head, and how deep S2O's tiles go",
      build_per_head};
  return table;
}

}  // namespace s2o
