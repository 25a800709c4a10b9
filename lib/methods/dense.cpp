// Dense causal attention as a plan: one causal run per query tile.
#include "lib/methods/method.h"

namespace s2o {
namespace {

class Dense final : public Method {
 public:
  const MethodInfo& info() const override {
    static const MethodInfo kInfo = {
        .name = "dense",
        .title = "Dense",
        .source = "exact causal softmax attention",
        .summary = "every causal key",
        .params = {},
        .knob = "",
        .knob_sweep = {},
        .full_budget = {.exists = true, .params = nlohmann::ordered_json::object()},
    };
    return kInfo;
  }

  SparsePlan plan_cpu(const PlanContext& context, const ParamSet&) const override {
    const Problem& problem = context.input.problem;
    SparsePlan plan(problem, /*block_m=*/128, /*block_n=*/128);
    PlanBuilder builder(plan);
    for (int head = 0; head < plan.header.num_plan_heads; ++head) {
      for (int tile = 0; tile < plan.header.num_q_tiles; ++tile) {
        const TileRows rows = tile_rows(problem, plan.header, tile);
        builder.add(head, tile,
                    {.begin = 0,
                     .count = static_cast<std::int32_t>(rows.last_position + 1),
                     .kind = ItemKind::kRun,
                     .mask = MaskClass::kCausal});
      }
    }
    builder.finish(plan.passes[0]);
    return plan;
  }
};

}  // namespace

const Method& method_dense() {
  static const Dense kMethod;
  return kMethod;
}

}  // namespace s2o
