// Error of one method (MSE, relative L2) as a function of sparsity, between the settings that were
// measured.
#pragma once

#include <optional>
#include <vector>

namespace s2o {

struct CurvePoint {
  double sparsity = 0.0;  // 1 - compute_density
  double error = 0.0;
};

// Monotone interpolation of log error over sparsity: the piecewise cubic of Fritsch and Carlson
// (SIAM J. Numer. Anal. 17, 1980) with the three-point slopes of PCHIP. It passes through the
// points of the lower-left envelope and never overshoots them. Nothing is extrapolated: outside the
// measured range the answer is empty.
//
// What goes in: points in any order. Points with a non-finite number, and points with error <= 0,
// are left out: dense attention and tau = 0 have no logarithm, and any floor put in their place
// would bend the curve between them and the first sparse setting.
//
// The envelope: a setting counts only if no other setting is at least as sparse with at most its
// error, because its user would take the other one. So equal sparsity keeps the smaller error,
// equal error the sparser setting, and a curve that is not monotone is answered as "the least error
// at this sparsity or beyond". Left of the envelope, but inside the measured range, that least
// error is the first envelope point's.
class MonotoneCurve {
 public:
  explicit MonotoneCurve(const std::vector<CurvePoint>& points);

  // Least error at this sparsity; empty outside the measured sparsities.
  std::optional<double> error_at(double sparsity) const;
  // Sparsity at which the interpolant reaches this error (its exact inverse, by bisection); empty
  // outside the errors of the envelope.
  std::optional<double> sparsity_at(double error) const;
  std::optional<double> density_at(double error) const;

  // Why a level outside the range is outside: the method does better than asked. At its sparsest
  // setting it errs less than this; or, every setting is sparser than this.
  bool errs_less_than(double error) const;
  bool is_sparser_than(double sparsity) const;

  // Ascending in sparsity and in error.
  const std::vector<CurvePoint>& envelope() const { return envelope_; }

 private:
  double log_error(double sparsity) const;  // inside the envelope

  std::vector<CurvePoint> envelope_;
  std::vector<double> log_error_;  // of envelope_
  std::vector<double> slope_;      // d log_error / d sparsity at each envelope point
  double min_sparsity_ = 0.0;      // of all usable points
};

}  // namespace s2o
