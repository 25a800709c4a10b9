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
        .reads_input = false,
    };
    return kInfo;
  }

  SparsePlan plan_cpu(const PlanContext& context, const ParamSet&) const override {
    return dense_plan(context.input.problem, /*block_m=*/128, /*block_n=*/128);
  }
};

}  // namespace

const Method& method_dense() {
  static const Dense kMethod;
  return kMethod;
}

}  // namespace s2o
