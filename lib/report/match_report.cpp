// The tables that match.h computes, laid out.
#include <fmt/format.h>

#include <set>

#include "lib/report/error_metric.h"
#include "lib/report/match.h"
#include "lib/report/settings.h"

namespace s2o {
namespace {

// How the two reports differ in words.
struct MatchWords {
  std::string name;          // of the table
  std::string quantity;      // what is compared
  std::string value_column;  // "mse"
  std::string level_column;  // "sparsity"
  std::string condition;     // "at equal sparsity"
  std::string level_note;
};

std::string level_text(double level) { return fmt::format("{:g}", level); }

std::string units_text(const CurveSet& set, const MatchGrid& grid) {
  std::set<std::string> inputs;
  std::set<int> layers;
  for (const CurveUnit& unit : set.units) {
    if (unit.seqlen != grid.seqlen) continue;
    inputs.insert(unit.input);
    layers.insert(unit.layer);
  }
  return fmt::format("{} units, one per {}; {}", grid.num_units,
                     set.unit == MatchUnit::kHead ? "input, layer and head" : "input and layer",
                     coverage_text(layers, inputs));
}

std::string counted(const std::string& text, int count, int total) {
  return count == 0 || count == total ? text : fmt::format("{} ({})", text, count);
}

ReportTable wide_table(const MatchGrid& grid, const std::string& name, const std::string& title) {
  ReportTable table{name, title, {{"method", "", true}}, {}, {}};
  for (double level : grid.levels) table.columns.push_back({level_text(level), "", false});
  return table;
}

void add_best_rows(ReportTable& table, const CurveSet& set, const MatchGrid& grid,
                   const MethodCurves& reference) {
  for (bool compensated : {false, true}) {
    std::vector<ReportCell> row = {
        text_cell(compensated ? "best compensated baseline" : "best baseline")};
    bool any = false;
    for (std::size_t l = 0; l < grid.levels.size(); ++l) {
      const int best = best_baseline(set, grid, l, reference, compensated);
      if (best < 0) {
        row.push_back(missing_cell());
        continue;
      }
      any = true;
      const auto m = static_cast<std::size_t>(best);
      ReportCell cell = number_cell(grid.cells[m][l].ratio.value);
      cell.text = set.methods[m].label + " " + cell.text;
      row.push_back(cell);
    }
    if (any) table.rows.push_back(row);
  }
}

void add_view(Report& report, const CurveSet& set, const MatchGrid& grid,
              const MethodCurves& reference, const MatchWords& words) {
  ReportTable values =
      wide_table(grid, words.name,
                 fmt::format("{} {}, seqlen {}", words.quantity, words.condition, grid.seqlen));
  ReportTable ratios = wide_table(grid, words.name + "_ratio",
                                  fmt::format("{} {}, relative to {}, seqlen {}", words.quantity,
                                              words.condition, reference.label, grid.seqlen));
  for (std::size_t m = 0; m < set.methods.size(); ++m) {
    values.rows.push_back({text_cell(set.methods[m].label)});
    ratios.rows.push_back({text_cell(set.methods[m].label)});
    for (const MatchCell& cell : grid.cells[m]) {
      ReportCell value = number_cell(cell.value.value);
      value.text = counted(value.text, cell.value.count, grid.num_units);
      values.rows.back().push_back(value);
      ratios.rows.back().push_back(ratio_cell(cell, grid.num_units));
    }
  }
  add_best_rows(ratios, set, grid, reference);
  values.notes = {
      words.level_note, "Geometric mean over " + units_text(set, grid) + ".",
      "(n): only n units reach this level, so the mean is not comparable with its neighbours "
      "(ratios are: they pair units); n/a: none does."};
  ratios.notes = {
      words.level_note,
      "Geometric mean of the ratios in each unit [2.5 %, 97.5 % bootstrap over units]; " +
          units_text(set, grid) + ".",
      fmt::format(
          "(n): only n units, where both the method and {} reach the level; (n+m): in m more "
          "the method does better than asked at every setting, so the ratio is too "
          "pessimistic.",
          reference.label),
      "best baseline: smallest ratio of a method that is neither S2O nor an oracle, drops what it "
      "does "
      "not visit, and covers at least half of the units; best compensated baseline: the same among "
      "methods that represent what they do not visit."};
  report.view.push_back(std::move(values));
  report.view.push_back(std::move(ratios));
}

std::vector<ReportCell> data_row(const MethodCurves& curves, const MatchGrid& grid, std::size_t l,
                                 const MatchCell& cell) {
  return {integer_cell(grid.seqlen),       number_cell(grid.levels[l]),
          text_cell(curves.method),        text_cell(curves.label),
          text_cell(curves.params.dump()), number_cell(cell.value.value),
          integer_cell(cell.value.count),  number_cell(cell.ratio.value),
          number_cell(cell.ratio.low),     number_cell(cell.ratio.high),
          integer_cell(cell.ratio.count),  integer_cell(cell.num_exceeding),
          integer_cell(grid.num_units)};
}

ReportTable data_table(const CurveSet& set, const std::vector<MatchGrid>& grids,
                       const MethodCurves& reference, const MatchWords& words) {
  ReportTable table{
      words.name,
      fmt::format("{} {}, relative to {}", words.quantity, words.condition, reference.label),
      {{"seqlen", ""},
       {words.level_column, ""},
       {"method", ""},
       {"label", ""},
       {"params", ""},
       {words.value_column, ""},
       {"units", ""},
       {"ratio", ""},
       {"ratio_low", ""},
       {"ratio_high", ""},
       {"ratio_units", ""},
       {"units_exceeding", ""},
       {"total_units", ""}},
      {},
      {words.level_note}};
  for (const MatchGrid& grid : grids) {
    for (std::size_t m = 0; m < set.methods.size(); ++m) {
      for (std::size_t l = 0; l < grid.levels.size(); ++l) {
        table.rows.push_back(data_row(set.methods[m], grid, l, grid.cells[m][l]));
      }
    }
    table.notes.push_back(fmt::format("seqlen {}: {}", grid.seqlen, units_text(set, grid)));
  }
  return table;
}

ReportTable best_data_table(const CurveSet& set, const std::vector<MatchGrid>& grids,
                            const MethodCurves& reference, const MatchWords& words) {
  ReportTable table{words.name + "_best_baseline",
                    "Best baseline " + words.condition,
                    {{"seqlen", ""},
                     {words.level_column, ""},
                     {"compensated", ""},
                     {"label", ""},
                     {"ratio", ""},
                     {"ratio_low", ""},
                     {"ratio_high", ""},
                     {"ratio_units", ""}},
                    {},
                    {}};
  for (const MatchGrid& grid : grids) {
    for (std::size_t l = 0; l < grid.levels.size(); ++l) {
      for (bool compensated : {false, true}) {
        const int best = best_baseline(set, grid, l, reference, compensated);
        if (best < 0) continue;
        const auto m = static_cast<std::size_t>(best);
        const GeometricMean& ratio = grid.cells[m][l].ratio;
        table.rows.push_back({integer_cell(grid.seqlen),
                              number_cell(grid.levels[l]),
                              {compensated ? "true" : "false", compensated},
                              text_cell(set.methods[m].label),
                              number_cell(ratio.value),
                              number_cell(ratio.low),
                              number_cell(ratio.high),
                              integer_cell(ratio.count)});
      }
    }
  }
  return table;
}

Report make_report(const CurveSet& set, const std::vector<MatchGrid>& grids,
                   const MatchOptions& options, const MatchWords& words) {
  const MethodCurves& reference = find_curves(set, options.reference);
  Report report;
  for (const MatchGrid& grid : grids) add_view(report, set, grid, reference, words);
  report.data = {data_table(set, grids, reference, words),
                 best_data_table(set, grids, reference, words)};
  return report;
}

}  // namespace

ReportCell ratio_cell(const MatchCell& cell, int num_units) {
  const GeometricMean& ratio = cell.ratio;
  ReportCell out = number_cell(ratio.value);
  if (ratio.low) {
    out.text += fmt::format(" [{}, {}]", number_cell(ratio.low).text, number_cell(ratio.high).text);
  }
  if (cell.num_exceeding > 0) {
    out.text += fmt::format(" ({}+{})", ratio.count, cell.num_exceeding);
  } else if (ratio.value && ratio.count < num_units) {
    out.text += fmt::format(" ({})", ratio.count);
  }
  return out;
}

Report matched_sparsity_report(const ResultTable& table, const MatchOptions& options) {
  const CurveSet set = build_curves(table, options.curves);
  return make_report(
      set, match_sparsity(set, options), options,
      {"matched_sparsity", parse_error_metric(options.curves.error).title, options.curves.error,
       "sparsity", "at equal sparsity", "Columns: sparsity = 1 - compute density."});
}

Report matched_density_report(const ResultTable& table, const MatchOptions& options) {
  const CurveSet set = build_curves(table, options.curves);
  const std::string& error = options.curves.error;
  const std::string& title = parse_error_metric(error).title;
  const std::string reference = find_curves(set, options.reference).label;
  MatchWords words{"matched_" + error,  "Compute density",        "compute_density", error,
                   "at equal " + title, "Columns: " + title + "."};
  if (options.errors.empty()) {
    words.level_column = "reference_sparsity";
    words.level_note = fmt::format("Columns: in each unit, the {} that {} has at this sparsity.",
                                   title, reference);
  }
  return make_report(set, match_error(set, options), options, words);
}

}  // namespace s2o
