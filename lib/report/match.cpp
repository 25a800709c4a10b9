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

enum class MatchBy { kSparsity, kError, kReferenceError };

// One level in one unit: the quantity that is compared, empty where the curve does not reach it.
struct UnitLevel {
  bool is_sparsity = true;
  std::optional<double> target;  // sparsity or error; empty where the reference has none to give

  std::optional<double> value_of(const MonotoneCurve& curve) const {
    if (!target) return std::nullopt;
    const std::optional<double> value =
        is_sparsity ? curve.error_at(*target) : curve.density_at(*target);
    // A density of 0 (nothing visited) has no ratio.
    return value && *value > 0.0 ? value : std::nullopt;
  }
  bool is_exceeded_by(const MonotoneCurve& curve) const {
    if (!target) return false;
    return is_sparsity ? curve.is_sparser_than(*target) : curve.errs_less_than(*target);
  }
};

UnitLevel level_in_unit(MatchBy by, double level, const MonotoneCurve* reference) {
  if (by == MatchBy::kSparsity) return {true, level};
  if (by == MatchBy::kError) return {false, level};
  return {false, reference ? reference->error_at(level) : std::nullopt};
}

MatchCell match_cell(const MethodCurves& curves, const MethodCurves& reference,
                     const std::vector<CurveUnit>& units, double level, MatchBy by,
                     const MatchOptions& options) {
  std::vector<double> values, ratios;
  MatchCell cell;
  for (const CurveUnit& unit : units) {
    const MonotoneCurve* curve = curve_in(curves, unit);
    const MonotoneCurve* reference_curve = curve_in(reference, unit);
    if (!curve) continue;
    const UnitLevel at = level_in_unit(by, level, reference_curve);
    const std::optional<double> value = at.value_of(*curve);
    if (at.is_exceeded_by(*curve)) ++cell.num_exceeding;
    if (!value) continue;
    values.push_back(*value);
    const std::optional<double> base =
        reference_curve ? at.value_of(*reference_curve) : std::nullopt;
    if (base) ratios.push_back(*value / *base);
  }
  cell.value = geometric_mean(values, options.resamples, options.seed);
  cell.ratio = geometric_mean(ratios, options.resamples, options.seed);
  return cell;
}

std::vector<MatchGrid> match(const CurveSet& set, const std::vector<double>& levels, MatchBy by,
                             const MatchOptions& options) {
  const MethodCurves& reference = find_curves(set, options.reference);
  std::vector<MatchGrid> grids;
  for (const auto& [seqlen, units] : units_by_seqlen(set)) {
    MatchGrid grid{seqlen, static_cast<int>(units.size()), levels, {}};
    for (const MethodCurves& curves : set.methods) {
      std::vector<MatchCell>& row = grid.cells.emplace_back();
      for (double level : levels) {
        row.push_back(match_cell(curves, reference, units, level, by, options));
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
  return match(set, options.sparsity, MatchBy::kSparsity, options);
}

std::vector<MatchGrid> match_error(const CurveSet& set, const MatchOptions& options) {
  if (options.errors.empty()) {
    return match(set, options.sparsity, MatchBy::kReferenceError, options);
  }
  return match(set, options.errors, MatchBy::kError, options);
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

std::vector<double> parse_error_levels(const std::string& text) {
  if (text == "auto") return {};
  return parse_levels(text, "--errors", std::numeric_limits<double>::infinity());
}

}  // namespace s2o
