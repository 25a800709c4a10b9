#include "lib/testing/stop_check.h"

#include <algorithm>
#include <cmath>

#include "kernels/common/parallel.h"

namespace s2o::testing {
namespace {

struct StopTile {
  int pass = 0;
  int head = 0;
  std::int64_t tile = 0;
};

bool is_stoppable(const PassView& pass, std::int64_t index) {
  for (std::int64_t i = pass.item_offsets[index]; i < pass.item_offsets[index + 1]; ++i) {
    if (pass.items[i].stoppable) return true;
  }
  return false;
}

std::vector<std::int64_t> positions_of(const Problem& problem, const PlanView& plan,
                                       const StopTile& at) {
  const std::int32_t* order = plan.passes[at.pass].query_order;
  std::vector<std::int64_t> positions;
  const std::int64_t end = std::min((at.tile + 1) * plan.block_m, problem.seqlen);
  for (std::int64_t slot = at.tile * plan.block_m; slot < end; ++slot) {
    positions.push_back(order == nullptr ? slot : order[at.head * problem.seqlen + slot]);
  }
  return positions;
}

// The reduced gain of every stoppable step of the tile, fp64.
std::vector<double> tile_gains(const Problem& problem, const PlanView& plan,
                               const RowInputs& inputs, const std::vector<TileStats>& stats,
                               const StopTile& at, const std::vector<std::int64_t>& positions) {
  std::vector<std::vector<double>> rows(positions.size());
  parallel_for(static_cast<std::int64_t>(rows.size()), [&](std::int64_t i) {
    const auto r = static_cast<std::size_t>(i);
    rows[r] = row_gains(problem, plan, inputs, stats, at.pass, at.head, positions[r]);
  });
  std::vector<double> gains(rows.front().size(), 0.0);
  for (const std::vector<double>& row : rows) {
    for (std::size_t step = 0; step < gains.size(); ++step) {
      gains[step] = plan.stop.reduce == StopReduce::kMax
                        ? std::max(gains[step], row[step])
                        : gains[step] + row[step] / static_cast<double>(rows.size());
    }
  }
  return gains;
}

// Distance from tau, relative to it, of the gain nearest to it among those that decided whether the
// tile ends after `step` steps.
double distance_to_tau(const StopRule& stop, float tau, const std::vector<double>& gains,
                       int step) {
  double nearest = HUGE_VAL;
  for (int i = std::max(step - stop.patience, 0); i < step; ++i) {
    const double distance = std::abs(gains[static_cast<std::size_t>(i)] - tau) / tau;
    nearest = std::min(nearest, distance);
  }
  return nearest;
}

}  // namespace

StopCheck check_stops(const Problem& problem, const PlanView& plan, const RowInputs& inputs,
                      const std::vector<TileStats>& actual,
                      const std::vector<TileStats>& expected) {
  StopCheck check;
  double worst = 0.0;
  std::size_t index = 0;
  for (int pass = 0; pass < plan.num_passes; ++pass) {
    for (int head = 0; head < plan.num_plan_heads; ++head) {
      for (std::int64_t tile = 0; tile < plan.num_q_tiles; ++tile, ++index) {
        const StopTile at{pass, head, tile};
        const std::int64_t tile_index = static_cast<std::int64_t>(head) * plan.num_q_tiles + tile;
        if (is_stoppable(plan.passes[pass], tile_index)) ++check.stoppable_tiles;
        const int found = actual[index].stop_steps;
        const int wanted = expected[index].stop_steps;
        if (found == wanted) continue;
        const std::vector<std::int64_t> positions = positions_of(problem, plan, at);
        for (const std::int64_t position : positions) {
          check.affected_rows.push_back(head * problem.seqlen + position);
        }
        const auto gains = tile_gains(problem, plan, inputs, expected, at, positions);
        const double distance = distance_to_tau(
            plan.stop, plan.passes[pass].tau_of(head, plan.stop), gains, std::min(found, wanted));
        if (distance <= kNearTieTolerance) {
          ++check.near_ties;
          continue;
        }
        ++check.disagreements;
        if (distance <= worst) continue;
        worst = distance;
        check.worst = "pass " + std::to_string(pass) + " head " + std::to_string(head) + " tile " +
                      std::to_string(tile) + ": " + std::to_string(found) + " steps, expected " +
                      std::to_string(wanted) + ", gain off tau by " + std::to_string(distance);
      }
    }
  }
  return check;
}

void drop_rows(const std::vector<std::int64_t>& rows, int head_dim, KernelResult& a,
               KernelResult& b) {
  for (const std::int64_t row : rows) {
    for (KernelResult* result : {&a, &b}) {
      const auto begin = result->out.begin() + row * head_dim;
      std::fill(begin, begin + head_dim, 0.0f);
      result->lse[static_cast<std::size_t>(row)] = 0.0f;
    }
  }
}

}  // namespace s2o::testing
