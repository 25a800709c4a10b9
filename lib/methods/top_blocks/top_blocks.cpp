// TopBlocks: as many of the best blocks in every row, by pooled queries and pooled keys.
//
// Source: the plainest budget of block-sparse attention, a row-wise top-k over the scores of
//   MeanPooling (mean_pooling.cpp); no paper. It shows what a fixed budget gives away to a share of
//   the mass.
//
// Definition, per query head with blocks of B tokens; r = rounding to the activation type:
//
// 1. qhat_i, khat_j = r(means of the blocks), a partial last block divided by B.
// 2. A[i, j] = r(r(qhat_i . khat_j) * softmax_scale) for j <= i; P = softmax over those j.
// 3. Keep the `topk` blocks of row i with the largest P, ties by lower index; then block 0 and
//    block i.
#include "lib/methods/top_blocks/top_blocks.h"

#include <span>

#include "lib/methods/common/block_selection.h"
#include "lib/methods/common/device_planning.h"
#include "lib/methods/common/pooled_selection.h"
#include "lib/methods/method.h"

namespace s2o {
namespace {

TopBlocksSettings settings_of(const ParamSet& params) {
  const auto block = static_cast<int>(params.get_int("block_size"));
  return {.block = block,
          .topk = static_cast<std::int32_t>(params.get_int("topk")),
          .fold = planned_fold(params, block)};
}

class TopBlocks final : public Method {
 public:
  const MethodInfo& info() const override {
    static const MethodInfo kInfo = {
        .name = "top_blocks",
        .title = "TopBlocks",
        .source = "row-wise top-k over the scores of MeanPooling",
        .summary = "as many of the best pooled blocks in every row",
        .params = {ParamSpec::integer("topk", 32, "key blocks of a row, beside the forced ones", 1,
                                      1 << 30),
                   pooled_block_size_spec(), rounding_spec(), compensation_spec()},
        .knob = "topk",
        .knob_sweep = {400, 192, 96, 48, 24, 12, 2},
        .full_budget = {.exists = true, .params = {{"topk", 1 << 30}}},
        .device = {.settings = {{{"topk", 3}},
                                {{"topk", 5}, {"block_size", 64}, {"compensation", "blocks"}},
                                {{"topk", 1000}}},
                   .tie_share = 0.005},
    };
    return kInfo;
  }

  SparsePlan plan_cpu(const PlanContext& context, const ParamSet& params) const override {
    const TopBlocksSettings settings = settings_of(params);
    return plan_pooled_rows(context.input, params, settings.block,
                            [&](std::span<const float> probability, std::uint8_t* selected) {
                              for (const std::int32_t j : top_indices(probability, settings.topk))
                                selected[j] = 1;
                            });
  }

  std::unique_ptr<Planner> device_planner(const DevicePlanningRequest& request) const override {
    const TopBlocksSettings settings = settings_of(request.params);
    if (!rounds_officially(request) || !is_device_block(settings.block)) return nullptr;
    return top_blocks_planner(request.problem, settings, request.limits);
  }
};

}  // namespace

const Method& method_top_blocks() {
  static const TopBlocks kMethod;
  return kMethod;
}

}  // namespace s2o
