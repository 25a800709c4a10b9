// When two visiting orders of a history are the same order for all that attention can tell.
// Planners sort by rounded scores into classes (kernels/planning/s2o/history.h), or by classes of
// equal steps of score (kernels/planning/s2o/ops.h), so a device order differs from one that sorts
// exact scores by near-ties. Tests only.
#pragma once

#include <cstdint>
#include <span>

namespace s2o::testing {

struct OrderTolerance {
  // Of a score, by the product's and the score's own rounding: absolute.
  double score_error = 0.0;
  // Of equal steps of score: the best and the worst that have a class of their own. What lies
  // beyond is one with them.
  bool has_steps = false;
  double highest = 0.0;
  double lowest = 0.0;
};

// A slot is a near-tie when it holds another token than the reference, whose reference score lies
// within score_error, and four steps of the histogram and the score span of the class around the
// slot, or the step of a class.
struct OrderComparison {
  std::int64_t slots = 0;
  std::int64_t moved = 0;   // slots with another token, near-ties included
  std::int64_t beyond = 0;  // of these, not near-ties
  double largest_excess = 0.0;
  bool is_permutation = true;  // of the reference when both have full length, else no token twice
};

// `scores` [history length] by token; `order` is the device's, `reference` sorts `scores` exactly,
// both at least `order.size()` long.
OrderComparison compare_orders(std::span<const float> scores, std::span<const std::int32_t> order,
                               std::span<const std::int32_t> reference,
                               const OrderTolerance& tolerance);

}  // namespace s2o::testing
