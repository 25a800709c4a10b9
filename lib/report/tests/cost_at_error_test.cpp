#include "lib/report/cost_at_error.h"

#include <gtest/gtest.h>

#include <cmath>

namespace s2o {
namespace {

// Knob, error, cost, density: ten times the error at a hundredth of the cost.
const std::vector<CostPoint> kCurve = {{1.0, 0.01, 100.0, 0.4}, {2.0, 0.1, 1.0, 0.1}};

TEST(CostAtError, lies_on_a_straight_line_in_log_log) {
  const auto at = cost_at_error(kCurve, std::sqrt(0.01 * 0.1));
  ASSERT_TRUE(at);
  EXPECT_NEAR(at->cost, 10.0, 1e-9);
  EXPECT_NEAR(at->other, 0.2, 1e-9);
}

TEST(CostAtError, points_are_reached_exactly) {
  EXPECT_EQ(cost_at_error(kCurve, 0.01)->cost, 100.0);
  EXPECT_EQ(cost_at_error(kCurve, 0.1)->cost, 1.0);
}

TEST(CostAtError, nothing_is_extrapolated) {
  EXPECT_FALSE(cost_at_error(kCurve, 0.009));
  EXPECT_EQ(cost_at_error(kCurve, 5.0)->cost, 1.0) << "the cheapest point, and no cheaper";
  EXPECT_FALSE(cost_at_error({}, 1.0));
}

TEST(CostAtError, a_better_setting_further_along_the_knob_is_taken) {
  std::vector<CostPoint> curve = kCurve;
  curve.push_back({3.0, 0.01, 5.0, 0.05});
  EXPECT_NEAR(cost_at_error(curve, 0.02)->cost, std::pow(5.0, std::log10(5.0)), 1e-9);
}

TEST(CostAtError, settings_as_good_as_dense_reach_every_target_and_bend_no_line) {
  const std::vector<CostPoint> curve = {{1.0, -0.001, 50.0, 0.5}, {2.0, 0.1, 1.0, 0.1}};
  EXPECT_EQ(cost_at_error(curve, 0.05)->cost, 50.0);
  EXPECT_EQ(cost_at_error(curve, 1e-6)->cost, 50.0);
}

TEST(CostAtError, order_of_the_points_does_not_matter) {
  EXPECT_EQ(cost_at_error({kCurve[1], kCurve[0]}, 0.05)->cost, cost_at_error(kCurve, 0.05)->cost);
}

TEST(CostAtError, points_without_a_number_are_no_points) {
  std::vector<CostPoint> curve = kCurve;
  curve.push_back({1.5, std::nan(""), 0.1, 0.1});
  curve.push_back({1.6, 0.001, 0.0, 0.1});
  EXPECT_FALSE(cost_at_error(curve, 0.001));
}

}  // namespace
}  // namespace s2o
