// Table (a): error against density, one row per setting as it was run.
#include <fmt/format.h>

#include "lib/report/paper_table.h"
#include "lib/report/settings.h"

namespace s2o {
namespace {

Report build_frontier(const ResultTable& table, const MatchOptions& options) {
  const std::vector<Setting> settings = group_settings(table, RowKind::kAttention, options.curves);
  require_settings(settings, table, "usable rows of `s2o eval`");
  ReportTable frontier{"frontier",
                       "Error against compute density",
                       {{"seqlen", ""},
                        {"backend", "", true},
                        {"method", "", true},
                        {"knob", "", true},
                        {"value", ""},
                        {"compute_density", ""},
                        {"sparsity", ""},
                        {"mse", ""},
                        {"relative_l2", ""},
                        {"mass_recall", ""},
                        {"rows", ""}},
                       {},
                       {}};
  for (const Setting& setting : settings) {
    const bool has_knob = !setting.knob_value.is_null();
    frontier.rows.push_back(
        {integer_cell(setting.seqlen),
         text_cell(setting.backend),
         text_cell(setting.label),
         text_cell(has_knob ? setting.knob : ""),
         {has_knob ? params_label(setting.params, {setting.knob}).substr(setting.knob.size() + 1)
                   : "",
          setting.knob_value},
         fixed_cell(mean_metric(setting, "compute_density"), 4),
         fixed_cell(mean_metric(setting, "sparsity"), 4),
         number_cell(mean_metric(setting, "mse")),
         number_cell(mean_metric(setting, "relative_l2")),
         fixed_cell(mean_metric(setting, "mass_recall"), 4),
         integer_cell(static_cast<std::int64_t>(setting.rows.size()))});
  }
  frontier.notes = {
      "Means over the rows of a setting, one per input and layer. (Not geometric means: one layer "
      "that a setting computes in full would hide the error of all others.)",
      coverage_text(settings)};
  return {{std::move(frontier)}, {}};
}

}  // namespace

const PaperTable& table_frontier() {
  static const PaperTable table{"frontier", "Error and density of every setting that was run",
                                build_frontier};
  return table;
}

}  // namespace s2o
