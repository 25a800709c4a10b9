#include "lib/report/wilson.h"

#include <gtest/gtest.h>

namespace s2o {
namespace {

// Values from the textbook formula, computed with 50 digits elsewhere.
TEST(wilson_interval, known_values) {
  const Proportion half = wilson_interval(5, 10);
  EXPECT_DOUBLE_EQ(half.value, 0.5);
  EXPECT_NEAR(half.low, 0.236593090512564, 1e-12);
  EXPECT_NEAR(half.high, 0.763406909487436, 1e-12);
  const Proportion most = wilson_interval(81, 263);
  EXPECT_NEAR(most.low, 0.255289, 1e-6);  // Newcombe 1998, table I: 0.2553 to 0.3662
  EXPECT_NEAR(most.high, 0.366210, 1e-6);
}

TEST(wilson_interval, ends_are_reached_and_not_crossed) {
  const Proportion none = wilson_interval(0, 20);
  EXPECT_EQ(none.low, 0.0);
  EXPECT_NEAR(none.high, 0.161125, 1e-6);  // Newcombe 1998, table I: 0 to 0.1611
  const Proportion all = wilson_interval(20, 20);
  EXPECT_EQ(all.high, 1.0);
  EXPECT_NEAR(all.low, 1.0 - none.high, 1e-12);
  const Proportion one = wilson_interval(1, 1);
  EXPECT_NEAR(one.low, 0.206549, 1e-6);
}

TEST(wilson_interval, text_has_the_value_and_its_interval) {
  EXPECT_EQ(proportion_text(wilson_interval(5, 10)), "0.500 [0.237, 0.763]");
}

}  // namespace
}  // namespace s2o
