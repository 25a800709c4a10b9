// Methods compared at equal sparsity and at equal error.
//
// In each unit (layer or head of one input) every method's error curve is interpolated
// (interpolate.h), and the ratio to the reference method's curve in the same unit is taken. Ratios
// are averaged over units as a geometric mean, with a bootstrap interval over units. A unit in
// which either curve does not reach the level is left out, and the number of units used is stated.
// Sequence lengths are never mixed.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "lib/report/curves.h"
#include "lib/report/geometric_mean.h"
#include "lib/report/peer_times.h"
#include "lib/report/report_table.h"

namespace s2o {

struct MatchOptions {
  std::string reference = "s2o";  // see find_curves
  std::vector<double> sparsity = {0.5, 0.6, 0.7, 0.8, 0.9, 0.95};
  // Errors to compare at. Empty: densities at the reference's own errors, in each unit, at the
  // sparsities above, so that every unit is compared where it is in use; times at the levels of the
  // error (error_metric.h).
  std::vector<double> errors;
  int resamples = 2000;
  std::uint64_t seed = 0;
  CurveOptions curves;
  std::vector<PeerTime> peers;  // for times; may be empty
  // At equal error: settings that differ in more than the knob are methods of their own, instead of
  // one method with the best of them.
  bool by_family = false;
};

struct MatchCell {
  GeometricMean value;  // error, or compute density, over the units that this method reaches
  GeometricMean ratio;  // to the reference, over the units that both reach
  // Units in which the method is left out because it does better than asked: it has no setting as
  // dense as this sparsity, or none that errs as much. The ratio is too pessimistic by them.
  int num_exceeding = 0;
};

struct MatchGrid {
  std::int64_t seqlen = 0;
  int num_units = 0;
  std::vector<double> levels;                 // sparsities, or errors
  std::vector<std::vector<MatchCell>> cells;  // [curves.methods, levels]
};

// At each sparsity the error of each method; ratio = error / the reference's. One grid per seqlen,
// ascending.
std::vector<MatchGrid> match_sparsity(const CurveSet& set, const MatchOptions& options);
// At each error the compute density of each method; ratio = density / the reference's density.
// With options.errors empty the levels are the sparsities of the reference.
std::vector<MatchGrid> match_error(const CurveSet& set, const MatchOptions& options);

// The baseline (not an oracle, not of the S2O family) with the smallest ratio at a level, among
// those that share at least half of the units that the reference reaches; -1 without one.
int best_baseline(const CurveSet& set, const MatchGrid& grid, std::size_t level,
                  const MethodCurves& reference, bool compensated);

// "3.82 [3.10, 4.61] (28+2)": ratio, interval; then, if not all of `num_units` were used, how many
// were and how many exceed.
ReportCell ratio_cell(const MatchCell& cell, int num_units);

// On the MSE or the relative L2 (options.curves.error): "matched_sparsity", and "matched_mse" or
// "matched_relative_l2".
Report matched_sparsity_report(const ResultTable& table, const MatchOptions& options);
Report matched_density_report(const ResultTable& table, const MatchOptions& options);

// "--sparsity 0.7,0.8": sorted, each once. ConfigError unless every level is in (0, 1).
std::vector<double> parse_sparsity_levels(const std::string& text);
// "--errors 1e-4,1e-5", or "auto" (empty). ConfigError unless every level is > 0.
std::vector<double> parse_error_levels(const std::string& text);

}  // namespace s2o
