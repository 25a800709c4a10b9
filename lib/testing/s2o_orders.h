// Visiting orders of S2O's device planners against exact scores of the CPU (key_ranking.h). Tests
// and benchmarks only.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "kernels/planning/s2o_layout.h"
#include "kernels/testing/order_compare.h"
#include "lib/input/attention_input.h"
#include "lib/methods/common/key_ranking.h"

namespace s2o::testing {

RankingSettings ranking_of(const S2oDeviceSettings& settings);

// Orders of all rows, as a planner leaves them in gather_indices.
struct S2oOrders {
  std::vector<std::int32_t> order;
  S2oLayout layout;
  HistoryShape shape;

  S2oOrders(const Problem& problem, const S2oDeviceSettings& settings,
            std::vector<std::int32_t> gather_indices);
  std::span<const std::int32_t> row(int list, std::int64_t segment) const;
};

// Compares the rows of the given segments (all when empty) of all lists of the input with a sort of
// exact scores; failures of single rows go to stderr.
OrderComparison compare_orders_with_cpu(const AttentionInput& input,
                                        const S2oDeviceSettings& settings, const S2oOrders& plan,
                                        std::span<const std::int64_t> segments = {});

}  // namespace s2o::testing
