// Where the time goes: planning and attention of every setting.
#include <fmt/format.h>

#include "lib/core/error.h"
#include "lib/report/paper_table.h"
#include "lib/report/settings.h"

namespace s2o {
namespace {

std::optional<double> share(std::optional<double> part, std::optional<double> whole) {
  if (!part || !whole || *whole <= 0.0) return std::nullopt;
  return *part / *whole;
}

Report build_latency(const ResultTable& table, const MatchOptions& options) {
  const std::vector<Setting> settings = group_settings(table, options.curves);
  ReportTable latency{"latency",
                      "Latency by setting",
                      {{"seqlen", ""},
                       {"backend", "", true},
                       {"kernel", "", true},
                       {"method", "", true},
                       {"compute_density", ""},
                       {"plan_latency_ms", ""},
                       {"attention_latency_ms", ""},
                       {"total_latency_ms", ""},
                       {"plan_share", ""},
                       {"speedup_vs_dense", ""},
                       {"rows", ""}},
                      {},
                      {}};
  for (const Setting& setting : settings) {
    const std::optional<double> plan = mean_metric(setting, "plan_latency_ms");
    const std::optional<double> total = mean_metric(setting, "total_latency_ms");
    if (!total) continue;  // not timed
    latency.rows.push_back(
        {integer_cell(setting.seqlen), text_cell(setting.backend), text_cell(setting.kernel),
         text_cell(setting.full_label()), fixed_cell(mean_metric(setting, "compute_density"), 3),
         number_cell(plan, 4), number_cell(mean_metric(setting, "attention_latency_ms"), 4),
         number_cell(total, 4), fixed_cell(share(plan, total), 3),
         number_cell(geometric_mean_metric(setting, "speedup_vs_dense")),
         integer_cell(static_cast<std::int64_t>(setting.rows.size()))});
  }
  if (latency.rows.empty()) {
    throw ConfigError(fmt::format("the results hold no latencies ({} rows); run eval with timing",
                                  table.rows.size()));
  }
  latency.notes = {
      "Means over the rows of a setting (one per input and layer) of each row's median; "
      "speedup_vs_dense: geometric mean, planning included; plan_share: planning / total. "
      "Planning of an oracle means nothing.",
      coverage_text(settings)};
  return {{std::move(latency)}, {}};
}

}  // namespace

const PaperTable& table_latency() {
  static const PaperTable table{"latency", "Planning, attention and total time of every setting",
                                build_latency};
  return table;
}

}  // namespace s2o
