// Oracle over single keys per query tile: the ceiling of every method that gathers keys for a tile.
//
// a_i[x] = true softmax mass of key x for the 128 rows of query tile i (dense reference, fp32).
// Keys before the tile are gathered by descending a_i[x], in steps of 128 (a partial step would
// execute the same work, so the budget is rounded up to whole steps); the diagonal block is visited
// whole, with its mask, beside the budget.
// scope "row": every tile gathers ceil(density * keys before it) keys, rounded up to steps.
// scope "head": the head's best steps, ceil(density * all such steps) of them.
// Ties: lower index. Planning reads the answer, so its time means nothing.
#include <algorithm>
#include <cmath>
#include <cstddef>

#include "kernels/common/parallel.h"
#include "lib/methods/common/block_selection.h"
#include "lib/methods/common/key_mass.h"
#include "lib/methods/method.h"

namespace s2o {
namespace {

constexpr int kBlock = 128;

struct TileRanking {
  std::vector<std::int32_t> keys;  // by descending mass
  std::vector<float> step_mass;    // of each kBlock keys
  std::int64_t steps_kept = 0;
};

class OracleToken final : public Method {
 public:
  const MethodInfo& info() const override {
    static const MethodInfo kInfo = {
        .name = "oracle_token",
        .title = "Oracle (tokens)",
        .source = "ceiling: true attention mass per key and query tile",
        .summary = "the single keys that hold the most true mass for a query tile",
        .params = {ParamSpec::real("density", 0.1,
                                   "share of the keys before the tile that are kept", 0.0, 1.0),
                   ParamSpec::choice("scope", "head", {"row", "head"},
                                     "budget per query tile, or per head")},
        .knob = "density",
        .knob_sweep = {0.6, 0.3, 0.1, 0.03, 0.01, 0.003},
        .full_budget = {.exists = true, .params = {{"density", 1.0}}},
        .is_oracle = true,
    };
    return kInfo;
  }

  SparsePlan plan_cpu(const PlanContext& context, const ParamSet& params) const override {
    const Problem& problem = context.input.problem;
    SparsePlan plan(problem, kBlock, kBlock);
    PlanBuilder builder(plan);
    PlanPass& pass = plan.passes[0];
    for (int head = 0; head < problem.num_q_heads; ++head) {
      std::vector<TileRanking> tiles(static_cast<std::size_t>(plan.header.num_q_tiles));
      parallel_for(plan.header.num_q_tiles, [&](std::int64_t task) {
        const int tile = plan.header.num_q_tiles - 1 - static_cast<int>(task);
        tiles[static_cast<std::size_t>(tile)] =
            rank_tile(context, head, tile_rows(problem, plan.header, tile));
      });
      spend_budget(params.get_real("density"), params.get_choice("scope") == "head", tiles);
      for (int tile = 0; tile < plan.header.num_q_tiles; ++tile) {
        const TileRows rows = tile_rows(problem, plan.header, tile);
        builder.add(head, tile,
                    {.begin = rows.first_slot,
                     .count = static_cast<std::int32_t>(rows.end_slot - rows.first_slot),
                     .mask = MaskClass::kCausal});
        const TileRanking& ranking = tiles[static_cast<std::size_t>(tile)];
        const auto count = std::min<std::int64_t>(ranking.steps_kept * kBlock,
                                                  static_cast<std::int64_t>(ranking.keys.size()));
        if (count == 0) continue;
        builder.add(head, tile,
                    {.begin = static_cast<std::int64_t>(pass.gather_indices.size()),
                     .count = static_cast<std::int32_t>(count),
                     .kind = ItemKind::kGather});
        pass.gather_indices.insert(pass.gather_indices.end(), ranking.keys.begin(),
                                   ranking.keys.begin() + count);
      }
    }
    builder.finish(pass);
    return plan;
  }

 private:
  static TileRanking rank_tile(const PlanContext& context, int head, const TileRows& rows) {
    const std::vector<float> mass =
        key_mass(context, head, rows.first_slot, rows.end_slot, rows.first_slot);
    TileRanking ranking{.keys = order_descending(mass)};
    for (std::size_t begin = 0; begin < ranking.keys.size(); begin += kBlock) {
      float step = 0.0f;
      for (std::size_t i = begin; i < std::min(begin + kBlock, ranking.keys.size()); ++i) {
        step += mass[static_cast<std::size_t>(ranking.keys[i])];
      }
      ranking.step_mass.push_back(step);
    }
    return ranking;
  }

  static void spend_budget(double density, bool per_head, std::vector<TileRanking>& tiles) {
    const auto steps_of = [density](std::int64_t keys) {
      return static_cast<std::int64_t>(std::ceil(density * static_cast<double>(keys) / kBlock));
    };
    if (!per_head) {
      for (TileRanking& tile : tiles) {
        tile.steps_kept = steps_of(static_cast<std::int64_t>(tile.keys.size()));
      }
      return;
    }
    // Step masses fall inside a tile, so the best steps of a head are a prefix of every tile.
    std::vector<std::pair<float, std::size_t>> steps;
    std::int64_t total_keys = 0;
    for (std::size_t tile = 0; tile < tiles.size(); ++tile) {
      total_keys += static_cast<std::int64_t>(tiles[tile].keys.size());
      for (const float mass : tiles[tile].step_mass) steps.emplace_back(mass, tile);
    }
    std::stable_sort(steps.begin(), steps.end(),
                     [](const auto& a, const auto& b) { return a.first > b.first; });
    const std::int64_t count =
        std::min<std::int64_t>(steps_of(total_keys), static_cast<std::int64_t>(steps.size()));
    for (std::int64_t i = 0; i < count; ++i)
      ++tiles[steps[static_cast<std::size_t>(i)].second].steps_kept;
  }
};

}  // namespace

const Method& method_oracle_token() {
  static const OracleToken kMethod;
  return kMethod;
}

}  // namespace s2o
