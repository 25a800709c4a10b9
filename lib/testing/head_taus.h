// A launch in which every head has a tau of its own against launches with one tau for all. Tests
// only.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <span>
#include <vector>

#include "kernels/common/plan_bounds.h"
#include "lib/testing/compare.h"

namespace s2o::testing {

// Results and counters of each head are the same, bit for bit. `run(input, plan)` is a
// KernelResult; `kind` has an early stop.
template <class Run>
void expect_heads_as_with_one_tau(PlanKind kind, const Run& run) {
  const PlanCase plan_case{kind, {900, 4, 2, 64}, 128, 64};
  const AttentionInput input = structured_input(plan_case.shape);
  const SparsePlan of_case = make_plan(plan_case, input, 1);
  const std::vector<float> taus = {0.3f, 0.02f, 0.0f, 0.08f};
  // Heads whose tau is 0 have no stoppable items.
  const auto never_stops = [&of_case](SparsePlan& plan, int head) {
    for (PlanPass& pass : plan.passes) {
      const std::int64_t end =
          pass.item_offsets[static_cast<std::size_t>(of_case.tile_index(head + 1, 0))];
      const std::int64_t begin =
          pass.item_offsets[static_cast<std::size_t>(of_case.tile_index(head, 0))];
      for (std::int64_t i = begin; i < end; ++i) {
        pass.items[static_cast<std::size_t>(i)].stoppable = false;
      }
    }
  };
  SparsePlan together = of_case;
  together.header.stop.tau = 0.3f;
  together.passes.back().head_taus = taus;
  never_stops(together, 2);
  check_plan(input.problem, together);
  check_plan_bounds(input.problem, PlanPointers(together).view());
  const KernelResult found = run(input, together);
  const auto tiles = static_cast<std::size_t>(of_case.header.num_q_tiles);
  const std::size_t passes = of_case.passes.size();
  std::vector<std::int32_t> steps;
  for (int head = 0; head < 4; ++head) {
    SparsePlan alone = of_case;
    alone.header.stop.tau = taus[static_cast<std::size_t>(head)];
    if (head == 2) {
      alone.header.stop.tau = 0.3f;
      never_stops(alone, head);
    }
    const KernelResult expected = run(input, alone);
    const auto first = static_cast<std::size_t>(input.problem.row_offset(head, 0));
    const auto end = static_cast<std::size_t>(input.problem.row_offset(head + 1, 0));
    const std::span<const float> out(found.out);
    EXPECT_TRUE(std::ranges::equal(out.subspan(first, end - first),
                                   std::span(expected.out).subspan(first, end - first)))
        << "head " << head;
    const std::size_t rows = 900;
    const auto row = static_cast<std::size_t>(head) * rows;
    EXPECT_TRUE(std::ranges::equal(std::span(found.lse).subspan(row, rows),
                                   std::span(expected.lse).subspan(row, rows)))
        << "head " << head;
    std::int32_t total = 0;
    for (std::size_t p = 0; p < passes; ++p) {
      for (std::size_t tile = 0; tile < tiles; ++tile) {
        const std::size_t i = (p * 4 + static_cast<std::size_t>(head)) * tiles + tile;
        EXPECT_EQ(found.stats[i].stop_steps, expected.stats[i].stop_steps) << "head " << head;
        EXPECT_EQ(found.stats[i].total_steps, expected.stats[i].total_steps) << "head " << head;
        total += found.stats[i].total_steps;
      }
    }
    steps.push_back(total);
  }
  EXPECT_LT(steps[0], steps[3]);
  EXPECT_LT(steps[3], steps[1]);
  EXPECT_LE(steps[1], steps[2]);  // with patience even .02 stops nothing
}

}  // namespace s2o::testing
