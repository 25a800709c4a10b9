// Selection and compensation apart: every method with each way of representing the keys that it did
// not visit.
#include <fmt/format.h>

#include <algorithm>

#include "lib/core/error.h"
#include "lib/report/paper_table.h"

namespace s2o {
namespace {

const std::vector<std::string>& compensation_kinds() {
  static const std::vector<std::string> kinds = {"none", "centroid", "blocks", "blocks_variance"};
  return kinds;
}

// FlashPrefill's own mean correction is "blocks" under another name.
std::string compensation_kind(const MethodCurves& curves) {
  const auto& params = curves.params;
  if (params.contains("compensation") && params.at("compensation") != "none") {
    return params.at("compensation").get<std::string>();
  }
  return curves.is_compensated ? "blocks" : "none";
}

// Curves that differ in compensation only.
struct Family {
  std::string label;
  nlohmann::ordered_json selection;  // params without compensation
  std::string method;
  std::map<std::string, std::size_t> by_kind;  // kind -> index into CurveSet::methods
};

std::vector<Family> group_families(const CurveSet& set, const CurveOptions& options) {
  std::vector<Family> families;
  for (std::size_t m = 0; m < set.methods.size(); ++m) {
    const MethodCurves& curves = set.methods[m];
    const auto selection =
        params_without(params_without(curves.params, "compensation"), "mean_correction");
    auto family = std::find_if(families.begin(), families.end(), [&](const Family& candidate) {
      return candidate.method == curves.method && candidate.selection == selection;
    });
    if (family == families.end()) {
      MethodFacts facts = options.facts(curves.method);
      families.push_back(
          {setting_label(curves.method, selection, facts), selection, curves.method, {}});
      family = families.end() - 1;
    }
    family->by_kind.try_emplace(compensation_kind(curves), m);
  }
  return families;
}

ReportTable level_table(const std::vector<Family>& families, const MatchGrid& grid, std::size_t l,
                        const std::string& reference) {
  ReportTable table{"compensation",
                    fmt::format("MSE at sparsity {:g}, relative to {}, seqlen {}", grid.levels[l],
                                reference, grid.seqlen),
                    {{"selection", "", true}},
                    {},
                    {}};
  for (const std::string& kind : compensation_kinds()) {
    table.columns.push_back(ReportColumn{.name = kind, .unit = "", .wrapped = false});
  }
  for (const Family& family : families) {
    table.rows.push_back({text_cell(family.label)});
    for (const std::string& kind : compensation_kinds()) {
      const auto found = family.by_kind.find(kind);
      if (found == family.by_kind.end()) {
        table.rows.back().push_back({"-", nullptr});
        continue;
      }
      table.rows.back().push_back(ratio_cell(grid.cells[found->second][l], grid.num_units));
    }
  }
  table.notes = {
      fmt::format("Geometric mean over {} units [2.5 %, 97.5 % bootstrap]; -: not among the "
                  "results. Folded columns count as work. Down a column: "
                  "selection; along a row: compensation.",
                  grid.num_units),
      ratio_note(reference)};
  return table;
}

void add_data(ReportTable& data, const std::vector<Family>& families, const MatchGrid& grid) {
  for (const Family& family : families) {
    for (const auto& [kind, m] : family.by_kind) {
      for (std::size_t l = 0; l < grid.levels.size(); ++l) {
        const MatchCell& cell = grid.cells[m][l];
        data.rows.push_back({integer_cell(grid.seqlen), number_cell(grid.levels[l]),
                             text_cell(family.label), text_cell(kind),
                             number_cell(cell.value.value), number_cell(cell.ratio.value),
                             number_cell(cell.ratio.low), number_cell(cell.ratio.high),
                             integer_cell(cell.ratio.count), integer_cell(grid.num_units)});
      }
    }
  }
}

Report build_compensation(const ResultTable& table, const MatchOptions& options) {
  const CurveSet set = build_curves(table, options.curves);
  const std::vector<Family> families = group_families(set, options.curves);
  const std::string reference = find_curves(set, options.reference).label;
  const bool any_compensated =
      std::any_of(set.methods.begin(), set.methods.end(),
                  [](const auto& curves) { return curves.is_compensated; });
  if (!any_compensated) {
    throw ConfigError("the results hold no method with compensation");
  }
  Report report;
  ReportTable data{"compensation",
                   "MSE at equal sparsity by selection and compensation, relative to " + reference,
                   {{"seqlen", ""},
                    {"sparsity", ""},
                    {"selection", ""},
                    {"compensation", ""},
                    {"mse", ""},
                    {"ratio", ""},
                    {"ratio_low", ""},
                    {"ratio_high", ""},
                    {"ratio_units", ""},
                    {"total_units", ""}},
                   {},
                   {}};
  for (const MatchGrid& grid : match_sparsity(set, options)) {
    for (std::size_t l = 0; l < grid.levels.size(); ++l) {
      report.view.push_back(level_table(families, grid, l, reference));
    }
    add_data(data, families, grid);
  }
  report.data = {std::move(data)};
  return report;
}

}  // namespace

const PaperTable& table_compensation() {
  static const PaperTable table{"compensation",
                                "MSE of each method under each compensation, at equal sparsity",
                                build_compensation};
  return table;
}

}  // namespace s2o
