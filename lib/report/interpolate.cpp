#include "lib/report/interpolate.h"

#include <algorithm>
#include <cmath>

namespace s2o {
namespace {

// A level such as 0.7 and a measured 1 - 0.3 differ in the last bits.
constexpr double kSparsitySlack = 1e-12;
constexpr double kLogErrorSlack = 1e-12;

std::vector<CurvePoint> usable_points(const std::vector<CurvePoint>& points) {
  std::vector<CurvePoint> usable;
  for (const CurvePoint& point : points) {
    if (std::isfinite(point.sparsity) && std::isfinite(point.error) && point.error > 0.0) {
      usable.push_back(point);
    }
  }
  std::sort(usable.begin(), usable.end(), [](const CurvePoint& a, const CurvePoint& b) {
    return a.sparsity != b.sparsity ? a.sparsity < b.sparsity : a.error < b.error;
  });
  return usable;
}

// From the sparse end, a point survives if its error is below that of every sparser point.
std::vector<CurvePoint> lower_left_envelope(const std::vector<CurvePoint>& sorted) {
  std::vector<CurvePoint> envelope;
  for (auto point = sorted.rbegin(); point != sorted.rend(); ++point) {
    if (envelope.empty()) {
      envelope.push_back(*point);
    } else if (point->error < envelope.back().error) {
      if (point->sparsity == envelope.back().sparsity) envelope.pop_back();
      envelope.push_back(*point);
    }
  }
  std::reverse(envelope.begin(), envelope.end());
  return envelope;
}

// One-sided three-point slope at an end, cut so that the end interval stays monotone.
double end_slope(double h0, double h1, double delta0, double delta1) {
  const double slope = ((2.0 * h0 + h1) * delta0 - h0 * delta1) / (h0 + h1);
  if (slope <= 0.0) return 0.0;
  return std::min(slope, 3.0 * delta0);
}

// `x` and `y` both strictly increasing.
std::vector<double> pchip_slopes(const std::vector<double>& x, const std::vector<double>& y) {
  const std::size_t n = x.size();
  std::vector<double> slopes(n, 0.0);
  if (n < 2) return slopes;
  std::vector<double> h(n - 1), delta(n - 1);
  for (std::size_t i = 0; i + 1 < n; ++i) {
    h[i] = x[i + 1] - x[i];
    delta[i] = (y[i + 1] - y[i]) / h[i];
  }
  if (n == 2) return {delta[0], delta[0]};
  for (std::size_t i = 1; i + 1 < n; ++i) {
    // Weighted harmonic mean: keeps |slope| <= 3 min(delta), the condition for monotonicity.
    const double w0 = 2.0 * h[i] + h[i - 1];
    const double w1 = h[i] + 2.0 * h[i - 1];
    slopes[i] = (w0 + w1) / (w0 / delta[i - 1] + w1 / delta[i]);
  }
  slopes[0] = end_slope(h[0], h[1], delta[0], delta[1]);
  slopes[n - 1] = end_slope(h[n - 2], h[n - 3], delta[n - 2], delta[n - 3]);
  return slopes;
}

}  // namespace

MonotoneCurve::MonotoneCurve(const std::vector<CurvePoint>& points) {
  const std::vector<CurvePoint> usable = usable_points(points);
  if (usable.empty()) return;
  min_sparsity_ = usable.front().sparsity;
  envelope_ = lower_left_envelope(usable);
  std::vector<double> sparsity;
  for (const CurvePoint& point : envelope_) {
    sparsity.push_back(point.sparsity);
    log_error_.push_back(std::log(point.error));
  }
  slope_ = pchip_slopes(sparsity, log_error_);
}

double MonotoneCurve::log_error(double sparsity) const {
  const auto next = std::upper_bound(
      envelope_.begin(), envelope_.end(), sparsity,
      [](double value, const CurvePoint& point) { return value < point.sparsity; });
  if (next == envelope_.begin()) return log_error_.front();
  if (next == envelope_.end()) return log_error_.back();
  const std::size_t i = static_cast<std::size_t>(next - envelope_.begin()) - 1;
  const double h = envelope_[i + 1].sparsity - envelope_[i].sparsity;
  const double t = (sparsity - envelope_[i].sparsity) / h;
  const double u = 1.0 - t;
  // Cubic Hermite basis.
  return u * u * (1.0 + 2.0 * t) * log_error_[i] + t * t * (3.0 - 2.0 * t) * log_error_[i + 1] +
         h * t * u * (u * slope_[i] - t * slope_[i + 1]);
}

std::optional<double> MonotoneCurve::error_at(double sparsity) const {
  if (envelope_.empty() || !std::isfinite(sparsity)) return std::nullopt;
  if (sparsity < min_sparsity_ - kSparsitySlack) return std::nullopt;
  if (sparsity > envelope_.back().sparsity + kSparsitySlack) return std::nullopt;
  return std::exp(log_error(sparsity));
}

std::optional<double> MonotoneCurve::sparsity_at(double error) const {
  if (envelope_.empty() || !std::isfinite(error) || error <= 0.0) return std::nullopt;
  const double target = std::log(error);
  if (target < log_error_.front() - kLogErrorSlack) return std::nullopt;
  if (target > log_error_.back() + kLogErrorSlack) return std::nullopt;
  double low = envelope_.front().sparsity;
  double high = envelope_.back().sparsity;
  if (target <= log_error_.front()) return low;
  if (target >= log_error_.back()) return high;
  constexpr int kBisections = 60;  // enough to exhaust a double
  for (int i = 0; i < kBisections; ++i) {
    const double middle = 0.5 * (low + high);
    (log_error(middle) < target ? low : high) = middle;
  }
  return 0.5 * (low + high);
}

std::optional<double> MonotoneCurve::density_at(double error) const {
  const std::optional<double> sparsity = sparsity_at(error);
  if (!sparsity) return std::nullopt;
  return 1.0 - *sparsity;
}

bool MonotoneCurve::errs_less_than(double error) const {
  return !envelope_.empty() && envelope_.back().error < error && !sparsity_at(error);
}

bool MonotoneCurve::is_sparser_than(double sparsity) const {
  return !envelope_.empty() && sparsity < min_sparsity_ && !error_at(sparsity);
}

}  // namespace s2o
