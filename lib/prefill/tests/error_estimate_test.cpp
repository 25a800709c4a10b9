#include "lib/prefill/error_estimate.h"

#include <gtest/gtest.h>

#include <cmath>

#include "lib/core/random.h"
#include "lib/methods/method.h"
#include "lib/testing/inputs.h"

namespace s2o {
namespace {

TEST(error_estimate, rows_are_one_of_each_part) {
  const std::vector<std::int64_t> rows = checked_rows(1000, 4, 7, 3);
  ASSERT_EQ(rows.size(), 4u);
  for (std::size_t i = 0; i < 4; ++i) {
    EXPECT_GE(rows[i], static_cast<std::int64_t>(i) * 250);
    EXPECT_LT(rows[i], static_cast<std::int64_t>(i + 1) * 250);
  }
  EXPECT_EQ(rows, checked_rows(1000, 4, 7, 3));
  EXPECT_NE(rows, checked_rows(1000, 4, 7, 4));
  EXPECT_EQ(checked_rows(2, 4, 7, 0), (std::vector<std::int64_t>{0, 1}));
}

TEST(error_estimate, a_single_row_leaves_all_in_doubt) {
  const ErrorEstimate estimate =
      estimate_error({{{1, 100}}, {{3, 100}}}, 1, std::vector<double>{0.5, 0.5});
  EXPECT_DOUBLE_EQ(estimate.value, 0.02);
  EXPECT_TRUE(std::isinf(estimate.margin));
}

TEST(error_estimate, equal_rows_leave_no_doubt) {
  const std::vector<std::vector<RowError>> layers = {{{1, 100}, {1, 100}, {3, 100}, {3, 100}},
                                                     {{2, 100}, {2, 100}, {2, 100}, {2, 100}}};
  const ErrorEstimate estimate = estimate_error(layers, 2, std::vector<double>{0.5, 0.5});
  EXPECT_DOUBLE_EQ(estimate.value, 0.02);
  EXPECT_NEAR(estimate.margin, 0.0, 1e-12);
}

// Draws rows of a population of which the whole is known, many times.
TEST(error_estimate, interval_holds_the_truth_about_as_often_as_it_says) {
  constexpr int kLayers = 8;
  constexpr std::int64_t kRows = 4096;
  std::vector<std::vector<RowError>> all(kLayers);
  std::vector<double> weights(kLayers, 1.0 / kLayers);
  double truth = 0.0;
  for (int layer = 0; layer < kLayers; ++layer) {
    const CounterRandom random(1, static_cast<std::uint64_t>(layer));
    RowError sum;
    for (std::int64_t row = 0; row < kRows; ++row) {
      const double spread = random.normal(static_cast<std::uint64_t>(row));
      all[static_cast<std::size_t>(layer)].push_back({0.01 * std::exp(spread), 1.0});
      sum.error += all[static_cast<std::size_t>(layer)].back().error;
      sum.reference += 1.0;
    }
    truth += sum.error / sum.reference / kLayers;
  }
  int inside = 0;
  double mean = 0.0;
  constexpr int kDraws = 400;
  for (int draw = 0; draw < kDraws; ++draw) {
    std::vector<std::vector<RowError>> sample(kLayers);
    for (int layer = 0; layer < kLayers; ++layer) {
      for (const std::int64_t row :
           checked_rows(kRows, 8, static_cast<std::uint64_t>(draw), layer)) {
        sample[static_cast<std::size_t>(layer)].push_back(
            all[static_cast<std::size_t>(layer)][static_cast<std::size_t>(row)]);
      }
    }
    const ErrorEstimate estimate = estimate_error(sample, 1, weights);
    mean += estimate.value / kDraws;
    inside += std::abs(estimate.value - truth) <= estimate.margin ? 1 : 0;
  }
  EXPECT_NEAR(mean, truth, 0.03 * truth);
  EXPECT_GE(inside, kDraws * 80 / 100);
}

TEST(error_estimate, exact_rows_are_those_of_dense_attention) {
  const AttentionInput input = testing::structured_input({300, 4, 2, 64});
  const SparsePlan plan = dense_plan(input.problem, 64, 64);
  const testing::Executed dense = testing::execute(input, plan);
  const std::vector<std::int64_t> rows = {0, 17, 299};
  std::vector<float> out = dense.out;
  const auto check = [&] {
    return row_errors_ref(input.problem, input.q.data(), input.k.data(), input.v.data(), out.data(),
                          rows);
  };
  for (const RowError& row : check()) EXPECT_LT(row.error, 1e-10 * row.reference);
  out[static_cast<std::size_t>(input.problem.row_offset(2, 17))] += 0.5f;
  const std::vector<RowError> errors = check();
  EXPECT_NEAR(errors[2 * 3 + 1].error, 0.25, 1e-3);
  EXPECT_LT(errors[2 * 3 + 2].error, 1e-10);
}

}  // namespace
}  // namespace s2o
