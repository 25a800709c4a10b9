#include "lib/report/interpolate.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

namespace s2o {
namespace {

// log error linear in sparsity: any order of interpolation must return it exactly.
double line(double sparsity) { return std::exp(-10.0 + 8.0 * sparsity); }

TEST(MonotoneCurve, mse_of_log_linear_points_is_exact) {
  const MonotoneCurve curve(
      {{0.2, line(0.2)}, {0.5, line(0.5)}, {0.6, line(0.6)}, {0.9, line(0.9)}});
  for (double s : {0.2, 0.3, 0.55, 0.6, 0.75, 0.9}) {
    ASSERT_TRUE(curve.error_at(s));
    EXPECT_NEAR(std::log(*curve.error_at(s)), std::log(line(s)), 1e-12) << s;
  }
}

TEST(MonotoneCurve, two_points_are_joined_by_a_line_in_log_error) {
  const MonotoneCurve curve({{0.5, 1e-6}, {0.9, 1e-2}});
  EXPECT_NEAR(*curve.error_at(0.7), 1e-4, 1e-16);
}

TEST(MonotoneCurve, smooth_curve_is_followed_closely) {
  const auto log_error = [](double s) { return -12.0 + 4.0 * s + 6.0 * s * s; };
  std::vector<CurvePoint> points;
  for (double s = 0.3; s < 0.96; s += 0.1) points.push_back({s, std::exp(log_error(s))});
  const MonotoneCurve curve(points);
  for (double s : {0.35, 0.47, 0.62, 0.88}) {
    EXPECT_NEAR(std::log(*curve.error_at(s)), log_error(s), 0.02) << s;
  }
}

TEST(MonotoneCurve, between_points_never_overshoots_a_step) {
  // A cubic spline would swing beyond the flat parts.
  const MonotoneCurve curve({{0.1, 1e-8}, {0.4, 1.01e-8}, {0.5, 1e-3}, {0.9, 1.01e-3}});
  double previous = 0.0;
  for (double s = 0.1; s <= 0.9; s += 0.01) {
    const double error = *curve.error_at(s);
    EXPECT_GE(error, previous) << s;
    EXPECT_GE(error, 1e-8 * (1 - 1e-12));
    EXPECT_LE(error, 1.01e-3 * (1 + 1e-12));
    previous = error;
  }
}

TEST(MonotoneCurve, outside_the_measured_range_has_no_value) {
  const MonotoneCurve curve({{0.5, 1e-5}, {0.9, 1e-3}});
  EXPECT_FALSE(curve.error_at(0.49));
  EXPECT_FALSE(curve.error_at(0.91));
  EXPECT_FALSE(curve.density_at(0.9e-5));
  EXPECT_FALSE(curve.density_at(1.1e-3));
  EXPECT_FALSE(curve.error_at(std::numeric_limits<double>::quiet_NaN()));
  EXPECT_FALSE(curve.density_at(0.0));
  EXPECT_FALSE(curve.density_at(-1.0));
}

TEST(MonotoneCurve, ends_of_the_range_have_the_measured_values) {
  const MonotoneCurve curve({{1.0 - 0.3, 1e-3}, {1.0 - 0.7, 1e-5}});
  EXPECT_NEAR(*curve.error_at(0.7), 1e-3, 1e-15);  // 1.0 - 0.3 is not 0.7 in binary
  EXPECT_NEAR(*curve.error_at(0.3), 1e-5, 1e-17);
  EXPECT_DOUBLE_EQ(*curve.density_at(1e-3), 1.0 - (1.0 - 0.3));
}

TEST(MonotoneCurve, order_of_points_does_not_matter) {
  const MonotoneCurve sorted({{0.2, 1e-6}, {0.5, 1e-4}, {0.8, 1e-3}});
  const MonotoneCurve shuffled({{0.8, 1e-3}, {0.2, 1e-6}, {0.5, 1e-4}});
  EXPECT_EQ(*sorted.error_at(0.4), *shuffled.error_at(0.4));
}

TEST(MonotoneCurve, duplicate_sparsity_keeps_the_smaller_error) {
  const MonotoneCurve curve({{0.2, 1e-6}, {0.5, 3e-4}, {0.5, 1e-4}, {0.8, 1e-3}});
  EXPECT_EQ(curve.envelope().size(), 3u);
  EXPECT_NEAR(*curve.error_at(0.5), 1e-4, 1e-16);
}

TEST(MonotoneCurve, equal_error_keeps_the_sparser_setting) {
  const MonotoneCurve curve({{0.3, 1e-4}, {0.5, 1e-4}, {0.8, 1e-3}});
  EXPECT_DOUBLE_EQ(*curve.density_at(1e-4), 0.5);
  EXPECT_NEAR(*curve.error_at(0.3), 1e-4, 1e-16);
}

TEST(MonotoneCurve, dominated_points_are_passed_below) {
  // At 0.6 the error is larger than at 0.7: nobody would use that setting.
  const MonotoneCurve curve({{0.5, 1e-5}, {0.6, 1e-2}, {0.7, 1e-4}, {0.9, 1e-3}});
  EXPECT_EQ(curve.envelope().size(), 3u);
  EXPECT_LE(*curve.error_at(0.6), 1e-4);
  EXPECT_GE(*curve.error_at(0.6), 1e-5);
}

TEST(MonotoneCurve, left_of_the_envelope_is_the_least_error_beyond) {
  const MonotoneCurve curve({{0.3, 1e-3}, {0.5, 1e-4}, {0.8, 2e-4}});
  EXPECT_NEAR(*curve.error_at(0.4), 1e-4, 1e-16);
  EXPECT_FALSE(curve.density_at(1e-3)) << "the only setting with this error is dominated";
}

TEST(MonotoneCurve, zero_and_non_finite_errors_are_left_out) {
  const double nan = std::numeric_limits<double>::quiet_NaN();
  const double infinity = std::numeric_limits<double>::infinity();
  const MonotoneCurve curve({{0.0, 0.0}, {0.5, 1e-4}, {0.6, nan}, {0.8, 1e-3}, {0.95, infinity}});
  EXPECT_EQ(curve.envelope().size(), 2u);
  EXPECT_FALSE(curve.error_at(0.4)) << "an exact setting must not widen the range";
  EXPECT_FALSE(curve.error_at(0.9));
}

TEST(MonotoneCurve, no_usable_point_has_no_value) {
  EXPECT_FALSE(MonotoneCurve({}).error_at(0.5));
  EXPECT_FALSE(MonotoneCurve({{0.5, 0.0}}).error_at(0.5));
  EXPECT_FALSE(MonotoneCurve({}).density_at(1e-3));
}

TEST(MonotoneCurve, single_point_has_its_own_value_only) {
  const MonotoneCurve curve({{0.5, 1e-4}});
  EXPECT_NEAR(*curve.error_at(0.5), 1e-4, 1e-16);
  EXPECT_FALSE(curve.error_at(0.51));
  EXPECT_DOUBLE_EQ(*curve.density_at(1e-4), 0.5);
}

TEST(MonotoneCurve, out_of_range_on_the_good_side_is_told_from_the_bad_side) {
  const MonotoneCurve curve({{0.5, 1e-5}, {0.9, 1e-3}});
  EXPECT_TRUE(curve.errs_less_than(2e-3));
  EXPECT_FALSE(curve.errs_less_than(1e-3)) << "in range";
  EXPECT_FALSE(curve.errs_less_than(1e-6)) << "cannot reach it";
  EXPECT_TRUE(curve.is_sparser_than(0.4));
  EXPECT_FALSE(curve.is_sparser_than(0.5));
  EXPECT_FALSE(curve.is_sparser_than(0.95));
  EXPECT_FALSE(MonotoneCurve({}).errs_less_than(1.0));
  EXPECT_FALSE(MonotoneCurve({}).is_sparser_than(0.0));
}

TEST(MonotoneCurve, density_inverts_mse) {
  const MonotoneCurve curve({{0.3, 1e-7}, {0.5, 2e-6}, {0.7, 1e-4}, {0.95, 3e-3}});
  for (double s : {0.31, 0.45, 0.5, 0.66, 0.9}) {
    EXPECT_NEAR(*curve.density_at(*curve.error_at(s)), 1.0 - s, 1e-9) << s;
  }
}

}  // namespace
}  // namespace s2o
