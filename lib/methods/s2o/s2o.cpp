// S2O: early stopping for sparse attention via online permutation (ACL 2026, arXiv 2602.22575).
//
// Faithful: queries ordered inside segments by a shared guide vector; the history of a segment
// ranked by similarity to the segment's mean query; dense causal pass over the own segment; walk of
// the ranked history that ends at the first small gain in normaliser mass.
// Open in the paper, chosen here (each a parameter): guide vector, sharing of the key order, how
// rows' gains reduce to one decision, patience, minimum steps, tile shape.
// Defaults: decided by the ablation in results/ablation.md.
#include "lib/methods/s2o/s2o.h"

namespace s2o {
namespace {

class S2o final : public S2oMethod {
 public:
  const MethodInfo& info() const override {
    static const MethodInfo kInfo = {
        .name = "s2o",
        .title = "S2O",
        .source = "S2O, ACL 2026, arXiv 2602.22575",
        .summary =
            "own segment, then history from most to least important until a step adds little",
        .params = s2o_param_specs(),
        .knob = "tau",
        .knob_sweep = {0.000005, 0.00003, 0.0001, 0.0003, 0.001, 0.003, 0.01, 0.03, 0.1},
        .params_by_head = {"tau"},
        .full_budget = {.exists = true, .params = {{"tau", 0.0}}},
        // Near-ties change the order, not which keys it holds.
        .device = {.settings = {{{"segment_size", 128}},
                                {{"segment_size", 1024}, {"key_order_sharing", "kv_head"}},
                                {{"segment_size", 256}, {"block_m", 64}, {"block_n", 64}}},
                   .tie_share = 0.0},
    };
    return kInfo;
  }

 private:
  S2oSettings settings_of(const ParamSet& params) const override { return s2o_settings(params); }
};

}  // namespace

SparsePlan S2oMethod::plan_cpu(const PlanContext& context, const ParamSet& params) const {
  return plan_s2o(context.input, settings_of(params, context.head_params));
}

std::unique_ptr<Planner> S2oMethod::device_planner(const DevicePlanningRequest& request) const {
  return device_planner_s2o(request, settings_of(request.params, request.head_params));
}

S2oSettings S2oMethod::settings_of(const ParamSet& params,
                                   std::span<const ParamSet> head_params) const {
  S2oSettings settings = settings_of(params);
  for (const ParamSet& head : head_params) settings.add_head(settings_of(head));
  return settings;
}

const Method& method_s2o() {
  static const S2o kMethod;
  return kMethod;
}

}  // namespace s2o
