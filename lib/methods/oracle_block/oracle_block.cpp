// Oracle over 128x128 blocks: the ceiling of every method that selects contiguous key blocks.
//
// A[i, j] = true softmax mass of key block j for the rows of query block i (dense reference, fp32).
// scope "row": every query block keeps its max(1, ceil(density * (i + 1))) best blocks.
// scope "head": the head keeps the ceil(density * T (T + 1) / 2) best of all causal blocks.
// The diagonal block is always kept and counts in the budget. Ties: lower index. The kept set
// maximises mass, not minimal error. Planning reads the answer, so its time means nothing.
#include <algorithm>
#include <cmath>
#include <cstddef>
#include <numeric>

#include "kernels/common/parallel.h"
#include "lib/methods/common/block_selection.h"
#include "lib/methods/common/key_mass.h"
#include "lib/methods/method.h"

namespace s2o {
namespace {

constexpr int kBlock = 128;

class OracleBlock final : public Method {
 public:
  const MethodInfo& info() const override {
    static const MethodInfo kInfo = {
        .name = "oracle_block",
        .title = "Oracle (blocks)",
        .source = "ceiling: true attention mass per 128x128 block",
        .summary = "the key blocks that hold the most true mass",
        .params = {ParamSpec::real("density", 0.1, "share of the causal blocks kept", 0.0, 1.0),
                   ParamSpec::choice("scope", "head", {"row", "head"},
                                     "budget per query block, or per head")},
        .knob = "density",
        .knob_sweep = {0.6, 0.35, 0.2, 0.1, 0.05, 0.02},
        .full_budget = {.exists = true, .params = {{"density", 1.0}}},
        .is_oracle = true,
    };
    return kInfo;
  }

  SparsePlan plan_cpu(const PlanContext& context, const ParamSet& params) const override {
    const Problem& problem = context.input.problem;
    const double density = params.get_real("density");
    const bool per_head = params.get_choice("scope") == "head";
    SparsePlan plan(problem, kBlock, kBlock);
    PlanBuilder builder(plan);
    const std::int64_t num_tiles = plan.header.num_q_tiles;
    std::vector<float> mass(static_cast<std::size_t>(num_tiles * num_tiles));
    for (int head = 0; head < problem.num_q_heads; ++head) {
      block_mass(context, plan, head, mass);
      std::vector<std::uint8_t> selected(mass.size(), 0);
      for (std::int64_t i = 0; i < num_tiles; ++i)
        selected[static_cast<std::size_t>(i * num_tiles + i)] = 1;
      std::vector<std::size_t> candidates;
      for (std::int64_t i = 0; i < num_tiles; ++i) {
        for (std::int64_t j = 0; j < i; ++j)
          candidates.push_back(static_cast<std::size_t>(i * num_tiles + j));
        if (per_head) continue;
        keep_best(mass, candidates, budget(density, i + 1) - 1, selected);
        candidates.clear();
      }
      if (per_head) {
        keep_best(mass, candidates, budget(density, num_tiles * (num_tiles + 1) / 2) - num_tiles,
                  selected);
      }
      for (int tile = 0; tile < num_tiles; ++tile) {
        add_key_blocks(problem, plan, builder, head, tile, selected.data() + tile * num_tiles,
                       kBlock);
      }
    }
    builder.finish(plan.passes[0]);
    return plan;
  }

 private:
  static std::int64_t budget(double density, std::int64_t blocks) {
    return std::max<std::int64_t>(
        1, static_cast<std::int64_t>(std::ceil(density * static_cast<double>(blocks))));
  }

  static void block_mass(const PlanContext& context, const SparsePlan& plan, int head,
                         std::vector<float>& mass) {
    const std::int64_t num_tiles = plan.header.num_q_tiles;
    parallel_for(num_tiles, [&](std::int64_t task) {
      const std::int64_t i = num_tiles - 1 - task;
      const TileRows rows = tile_rows(context.input.problem, plan.header, static_cast<int>(i));
      const std::vector<float> keys =
          key_mass(context, head, rows.first_slot, rows.end_slot, rows.end_slot);
      for (std::int64_t j = 0; j <= i; ++j) {
        const auto begin = keys.begin() + j * kBlock;
        const auto end = keys.begin() + std::min<std::int64_t>((j + 1) * kBlock, rows.end_slot);
        mass[static_cast<std::size_t>(i * num_tiles + j)] = std::accumulate(begin, end, 0.0f);
      }
    });
  }

  // `candidates` ascend.
  static void keep_best(const std::vector<float>& mass, const std::vector<std::size_t>& candidates,
                        std::int64_t count, std::vector<std::uint8_t>& selected) {
    std::vector<float> scores;
    for (const std::size_t block : candidates) scores.push_back(mass[block]);
    for (const std::int32_t i : top_indices(scores, count)) {
      selected[candidates[static_cast<std::size_t>(i)]] = 1;
    }
  }
};

}  // namespace

const Method& method_oracle_block() {
  static const OracleBlock kMethod;
  return kMethod;
}

}  // namespace s2o
