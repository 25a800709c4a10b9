// Table (d): what each parameter of the reference method is worth. Every other setting of the same
// method is compared with it at equal sparsity; so is a local window alone (streaming_llm), which
// is what remains of S2O without its history.
#include <fmt/format.h>

#include "lib/core/error.h"
#include "lib/report/paper_table.h"
#include "lib/report/settings.h"

namespace s2o {
namespace {

struct Variant {
  std::string change;
  std::size_t method = 0;  // index into CurveSet::methods
};

std::vector<Variant> variants_of(const CurveSet& set, const MethodCurves& reference) {
  std::vector<Variant> variants;
  for (std::size_t m = 0; m < set.methods.size(); ++m) {
    const MethodCurves& curves = set.methods[m];
    if (&curves == &reference) {
      variants.insert(variants.begin(), {"(reference)", m});
    } else if (curves.method == reference.method) {
      const std::vector<std::string> keys = changed_keys(curves.params, reference.params);
      variants.push_back({params_label(curves.params, keys), m});
    }
  }
  for (std::size_t m = 0; m < set.methods.size(); ++m) {
    if (set.methods[m].method != "streaming_llm") continue;
    variants.push_back({"local window only: " + set.methods[m].label, m});
  }
  return variants;
}

ReportTable change_table(const std::vector<Variant>& variants, const MatchGrid& grid,
                         const std::string& name, const std::string& title) {
  ReportTable table{name, title, {{"change", "", true}}, {}, {}};
  for (double level : grid.levels) table.columns.push_back({fmt::format("{:g}", level), "", false});
  for (const Variant& variant : variants) {
    table.rows.push_back({text_cell(variant.change)});
    for (const MatchCell& cell : grid.cells[variant.method]) {
      table.rows.back().push_back(ratio_cell(cell, grid.num_units));
    }
  }
  return table;
}

void add_data(ReportTable& data, const std::vector<Variant>& variants, const MatchGrid& mse,
              const MatchGrid& density) {
  for (const Variant& variant : variants) {
    for (std::size_t l = 0; l < mse.levels.size(); ++l) {
      const GeometricMean& ratio = mse.cells[variant.method][l].ratio;
      const GeometricMean& density_ratio = density.cells[variant.method][l].ratio;
      data.rows.push_back({integer_cell(mse.seqlen), number_cell(mse.levels[l]),
                           text_cell(variant.change), number_cell(ratio.value),
                           number_cell(ratio.low), number_cell(ratio.high),
                           number_cell(density_ratio.value), number_cell(density_ratio.low),
                           number_cell(density_ratio.high), integer_cell(ratio.count),
                           integer_cell(mse.num_units)});
    }
  }
}

ReportTable knob_table(const ResultTable& table, const MethodCurves& reference,
                       const CurveOptions& options) {
  ReportTable trace{"ablation_knob",
                    fmt::format("The knob of {}", reference.label),
                    {{"seqlen", ""},
                     {"setting", "", true},
                     {"compute_density", ""},
                     {"mse", ""},
                     {"relative_l2", ""},
                     {"rows", ""}},
                    {},
                    {"Means over the rows of a setting, one per input and layer."}};
  for (const Setting& setting : group_settings(table, options)) {
    if (setting.method != reference.method || setting.knob_value.is_null()) continue;
    if (params_without(setting.params, setting.knob) != reference.params) continue;
    trace.rows.push_back(
        {integer_cell(setting.seqlen), text_cell(params_label(setting.params, {setting.knob})),
         fixed_cell(mean_metric(setting, "compute_density"), 4),
         number_cell(mean_metric(setting, "mse")), number_cell(mean_metric(setting, "relative_l2")),
         integer_cell(static_cast<std::int64_t>(setting.rows.size()))});
  }
  return trace;
}

Report build_ablations(const ResultTable& table, const MatchOptions& options) {
  const CurveSet set = build_curves(table, options.curves);
  const MethodCurves& reference = find_curves(set, options.reference);
  const std::vector<Variant> variants = variants_of(set, reference);
  MatchOptions against_reference = options;
  against_reference.errors.clear();
  const std::vector<MatchGrid> mse = match_sparsity(set, against_reference);
  const std::vector<MatchGrid> density = match_error(set, against_reference);

  Report report;
  ReportTable data{"ablations",
                   fmt::format("Settings relative to {}", reference.label),
                   {{"seqlen", ""},
                    {"sparsity", ""},
                    {"change", ""},
                    {"mse_ratio", ""},
                    {"mse_ratio_low", ""},
                    {"mse_ratio_high", ""},
                    {"density_ratio", ""},
                    {"density_ratio_low", ""},
                    {"density_ratio_high", ""},
                    {"ratio_units", ""},
                    {"total_units", ""}},
                   {},
                   {"reference: " + reference.method + " " + reference.params.dump()}};
  for (std::size_t g = 0; g < mse.size(); ++g) {
    ReportTable by_mse =
        change_table(variants, mse[g], "ablations",
                     fmt::format("MSE at equal sparsity, relative to {}, seqlen {}",
                                 reference.label, mse[g].seqlen));
    ReportTable by_density = change_table(
        variants, density[g], "ablations_density",
        fmt::format(
            "Compute density at the MSE that {} has at a sparsity, relative to it, seqlen {}",
            reference.label, mse[g].seqlen));
    by_mse.notes = {fmt::format("Columns: sparsity. Geometric mean over {} units [2.5 %, 97.5 % "
                                "bootstrap]. Below 1 is better.",
                                mse[g].num_units),
                    ratio_note(reference.label),
                    "Reference: " + reference.method + " " + reference.params.dump()};
    report.view.push_back(std::move(by_mse));
    report.view.push_back(std::move(by_density));
    add_data(data, variants, mse[g], density[g]);
  }
  ReportTable knob = knob_table(table, reference, options.curves);
  report.data = {std::move(data), knob};
  report.view.push_back(std::move(knob));
  return report;
}

}  // namespace

const PaperTable& table_ablations() {
  static const PaperTable table{
      "ablations", "Each setting of the reference method against its reference setting",
      build_ablations};
  return table;
}

}  // namespace s2o
