#include "kernels/testing/order_compare.h"

#include <algorithm>
#include <cmath>
#include <iterator>
#include <vector>

#include "kernels/planning/s2o/ops.h"

namespace s2o::testing {

namespace {

// Entries of the class around a slot beyond the sharp class.
std::int64_t share_width(const RankClasses& classes, std::int64_t slot) {
  const auto depth = static_cast<std::uint32_t>(slot);
  const auto* const end =
      std::upper_bound(std::begin(classes.begins), std::end(classes.begins), depth);
  return std::int64_t{*end} - *(end - 1);
}

}  // namespace

OrderComparison compare_orders(std::span<const float> scores, std::span<const std::int32_t> order,
                               std::span<const std::int32_t> reference,
                               const OrderTolerance& tolerance) {
  OrderComparison result;
  result.slots = static_cast<std::int64_t>(order.size());
  std::vector<bool> seen(scores.size(), false);
  const auto score_of = [&](std::int32_t token) {
    const auto score = static_cast<double>(scores[static_cast<std::size_t>(token)]);
    return tolerance.has_steps ? std::clamp(score, tolerance.lowest, tolerance.highest) : score;
  };
  const auto score_at = [&](std::int64_t slot) {
    const auto last = static_cast<std::int64_t>(reference.size()) - 1;
    const auto clamped = static_cast<std::size_t>(std::clamp<std::int64_t>(slot, 0, last));
    return score_of(reference[clamped]);
  };
  const auto length = static_cast<std::int64_t>(order.size());
  const std::int64_t sharp = sharp_depth(static_cast<std::int64_t>(scores.size()), length);
  const double step =
      length == 0 ? 0.0
                  : (score_at(0) - score_at(static_cast<std::int64_t>(reference.size()) - 1)) /
                        (kRankBins - 1);
  const RankClasses classes(static_cast<std::uint32_t>(sharp), static_cast<std::uint32_t>(length));
  for (std::int64_t slot = 0; slot < length; ++slot) {
    const std::int32_t token = order[static_cast<std::size_t>(slot)];
    if (token < 0 || static_cast<std::size_t>(token) >= scores.size() ||
        seen[static_cast<std::size_t>(token)]) {
      result.is_permutation = false;
      continue;
    }
    seen[static_cast<std::size_t>(token)] = true;
    if (token == reference[static_cast<std::size_t>(slot)]) continue;
    ++result.moved;
    double allowed = 2.0 * tolerance.score_error;
    if (tolerance.has_steps) {
      allowed += (tolerance.highest - tolerance.lowest) / (kMeanClasses - 3);
    } else {
      const std::int64_t width =
          slot < sharp ? sharp / kFineClasses + 1 : share_width(classes, slot) + 1;
      allowed += score_at(slot - width) - score_at(slot + width) + 4.0 * step;
    }
    const double gap = std::abs(score_of(token) - score_at(slot));
    if (gap > allowed) {
      ++result.beyond;
      result.largest_excess = std::max(result.largest_excess, gap - allowed);
    }
  }
  return result;
}

}  // namespace s2o::testing
