#include "lib/report/match.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <limits>

#include "lib/core/error.h"

namespace s2o {
namespace {

const MonotoneCurve* curve_in(const MethodCurves& curves, const CurveUnit& unit) {
  const auto found = curves.curves.find(unit);
  return found == curves.curves.end() ? nullptr : &found->second;
}

std::map<std::int64_t, std::vector<CurveUnit>> units_by_seqlen(const CurveSet& set) {
  std::map<std::int64_t, std::vector<CurveUnit>> units;
  for (const CurveUnit& unit : set.units) units[unit.seqlen].push_back(unit);
  return units;
}

// Evaluates one curve at one level; `reference` is the reference's curve in the same unit.
using CurveValue = std::optional<double> (*)(const MonotoneCurve& curve,
                                             const MonotoneCurve* reference, double level);

std::optional<double> mse_at_sparsity(const MonotoneCurve& curve, const MonotoneCurve*,
                                      double level) {
  return curve.mse_at(level);
}

std::optional<double> density_at_mse(const MonotoneCurve& curve, const MonotoneCurve*,
                                     double level) {
  return curve.density_at(level);
}

std::optional<double> density_at_reference_mse(const MonotoneCurve& curve,
                                               const MonotoneCurve* reference, double level) {
  if (!reference) return std::nullopt;
  const std::optional<double> mse = reference->mse_at(level);
  return mse ? curve.density_at(*mse) : std::nullopt;
}

MatchCell match_cell(const MethodCurves& curves, const MethodCurves& reference,
                     const std::vector<CurveUnit>& units, double level, CurveValue value_of,
                     const MatchOptions& options) {
  std::vector<double> values, ratios;
  for (const CurveUnit& unit : units) {
    const MonotoneCurve* curve = curve_in(curves, unit);
    const MonotoneCurve* reference_curve = curve_in(reference, unit);
    if (!curve) continue;
    const std::optional<double> value = value_of(*curve, reference_curve, level);
    // A density of 0 (nothing visited) has no ratio.
    if (!value || *value <= 0.0) continue;
    values.push_back(*value);
    if (!reference_curve) continue;
    const std::optional<double> base = value_of(*reference_curve, reference_curve, level);
    if (base && *base > 0.0) ratios.push_back(*value / *base);
  }
  return {geometric_mean(values, options.resamples, options.seed),
          geometric_mean(ratios, options.resamples, options.seed)};
}

std::vector<MatchGrid> match(const CurveSet& set, const std::vector<double>& levels,
                             CurveValue value_of, const MatchOptions& options) {
  const MethodCurves& reference = find_curves(set, options.reference);
  std::vector<MatchGrid> grids;
  for (const auto& [seqlen, units] : units_by_seqlen(set)) {
    MatchGrid grid{seqlen, static_cast<int>(units.size()), levels, {}};
    for (const MethodCurves& curves : set.methods) {
      std::vector<MatchCell>& row = grid.cells.emplace_back();
      for (double level : levels) {
        row.push_back(match_cell(curves, reference, units, level, value_of, options));
      }
    }
    grids.push_back(std::move(grid));
  }
  return grids;
}

std::vector<double> parse_levels(const std::string& text, const std::string& flag, double max) {
  std::vector<double> levels;
  std::size_t begin = 0;
  while (begin <= text.size()) {
    const std::size_t end = std::min(text.find(',', begin), text.size());
    double level = 0.0;
    const char* last = text.data() + end;
    const auto [parsed, status] = std::from_chars(text.data() + begin, last, level);
    // Not `level <= 0`: NaN must fail too.
    if (status != std::errc() || parsed != last || !(level > 0.0) || !(level < max)) {
      throw ConfigError(fmt::format("{} {}: '{}' is no number above 0{}", flag, text,
                                    text.substr(begin, end - begin),
                                    max == 1.0 ? " and below 1" : ""));
    }
    levels.push_back(level);
    begin = end + 1;
  }
  std::sort(levels.begin(), levels.end());
  levels.erase(std::unique(levels.begin(), levels.end()), levels.end());
  return levels;
}

}  // namespace

std::vector<MatchGrid> match_sparsity(const CurveSet& set, const MatchOptions& options) {
  return match(set, options.sparsity, mse_at_sparsity, options);
}

std::vector<MatchGrid> match_mse(const CurveSet& set, const MatchOptions& options) {
  if (options.mse.empty()) return match(set, options.sparsity, density_at_reference_mse, options);
  return match(set, options.mse, density_at_mse, options);
}

int best_baseline(const CurveSet& set, const MatchGrid& grid, std::size_t level,
                  const MethodCurves& reference, bool compensated) {
  int reached = 0;
  for (std::size_t m = 0; m < set.methods.size(); ++m) {
    if (&set.methods[m] == &reference) reached = grid.cells[m][level].ratio.count;
  }
  int best = -1;
  for (std::size_t m = 0; m < set.methods.size(); ++m) {
    const MethodCurves& curves = set.methods[m];
    if (curves.is_oracle || curves.method.starts_with("s2o")) continue;
    if (curves.is_compensated != compensated) continue;
    const GeometricMean& ratio = grid.cells[m][level].ratio;
    if (!ratio.value || 2 * ratio.count < reached) continue;
    const auto index = static_cast<int>(m);
    if (best < 0 || *ratio.value < *grid.cells[static_cast<std::size_t>(best)][level].ratio.value) {
      best = index;
    }
  }
  return best;
}

std::vector<double> parse_sparsity_levels(const std::string& text) {
  return parse_levels(text, "--sparsity", 1.0);
}

std::vector<double> parse_mse_levels(const std::string& text) {
  if (text == "auto") return {};
  return parse_levels(text, "--mse", std::numeric_limits<double>::infinity());
}

}  // namespace s2o
