// MeanPooling: the plain pooled-query, pooled-key baseline of PBS-Attn (arXiv 2510.21270, code
// xinghaow99/pbs-attn).
//
// Faithful: pooling with zero padding, rounding, row-wise top-cdf over all causal blocks with the
// crossing block kept, forced column 0 and diagonal.
//
// Deviates: threshold = 1 selects every block, where the original's floating-point sum may miss 1
// and select nothing but the forced blocks; ties go to the lower index (the original: undefined);
// running sums are fp64, rounded to fp32 before each comparison (the original: an fp32 scan).
//
// Defaults: block_size 128, threshold 0.9, as run on Llama-3.1-8B. Level A ("official") rounds
// pooled means, products and scaled scores to the activation type.
//
// Definition. Per query head, blocks of B tokens, T = ceil(seqlen / B):
//
// 1. qhat_i, khat_j = r(sum over the block / B): a partial last block counts missing rows as zeros.
//
// 2. A[i, j] = r(r(qhat_i . khat_j) * softmax_scale) for j <= i; P = softmax over those j.
//
// 3. Keep the blocks of row i in descending P until their sum reaches the threshold, that one
//    included; then block 0 and block i.
#include "lib/methods/mean_pooling/mean_pooling.h"

#include <span>

#include "lib/methods/common/block_selection.h"
#include "lib/methods/common/device_planning.h"
#include "lib/methods/common/pooled_selection.h"
#include "lib/methods/method.h"

namespace s2o {
namespace {

MeanPoolingSettings settings_of(const ParamSet& params) {
  const auto block = static_cast<int>(params.get_int("block_size"));
  return {.block = block,
          .threshold = params.get_real("threshold"),
          .fold = planned_fold(params, block)};
}

class MeanPooling final : public Method {
 public:
  const MethodInfo& info() const override {
    static const MethodInfo kInfo = {
        .name = "mean_pooling",
        .title = "MeanPooling",
        .source = "baseline of PBS-Attn, arXiv 2510.21270",
        .summary = "row-wise top-cdf over pooled-query, pooled-key scores",
        .params = {ParamSpec::real("threshold", 0.9,
                                   "share of each row's estimated mass to keep; 1 means all", 0.0,
                                   1.0),
                   pooled_block_size_spec(), rounding_spec(), compensation_spec()},
        .knob = "threshold",
        .knob_sweep = {0.995, 0.98, 0.95, 0.9, 0.8, 0.7, 0.5, 0.15},
        .full_budget = {.exists = true, .params = {{"threshold", 1.0}}},
        .device =
            {.settings = {{{"threshold", 0.5}},
                          {{"threshold", 0.9}, {"block_size", 64}, {"compensation", "blocks"}},
                          {{"threshold", 1.0}}},
             .tie_share = 0.005},
    };
    return kInfo;
  }

  SparsePlan plan_cpu(const PlanContext& context, const ParamSet& params) const override {
    const MeanPoolingSettings settings = settings_of(params);
    return plan_pooled_rows(context.input, params, settings.block,
                            [&](std::span<const float> probability, std::uint8_t* selected) {
                              select_cross_in(probability, settings.threshold, selected);
                            });
  }

  std::unique_ptr<Planner> device_planner(const DevicePlanningRequest& request) const override {
    const MeanPoolingSettings settings = settings_of(request.params);
    if (!rounds_officially(request) || !is_device_block(settings.block)) return nullptr;
    return mean_pooling_planner(request.problem, settings, request.limits);
  }
};

}  // namespace

const Method& method_mean_pooling() {
  static const MeanPooling kMethod;
  return kMethod;
}

}  // namespace s2o
