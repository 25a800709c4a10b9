#include "lib/methods/rbs/rbs.h"

#include "lib/methods/common/block_energy_planner.h"

namespace s2o {
namespace {

class RbsPlanner final : public BlockEnergyPlanner {
 public:
  RbsPlanner(const Problem& problem, const RbsSettings& settings, const PlannerLimits& limits)
      : BlockEnergyPlanner(problem, /*pack=*/1, settings.fold, limits), settings_(settings) {
    const std::int64_t count = static_cast<std::int64_t>(problem.num_kv_heads) * num_blocks_;
    radii_ = workspace_.add<float>(count);
    lifts_ = workspace_.add<float>(count);
  }

 private:
  void prepare(const DeviceInput& input, PlanningKernels& kernels) const override {
    if (settings_.alpha_rescue.has_value()) {
      kernels.run(BlockRadiusArgs{.k = input.k,
                                  .radii = radii_.data(),
                                  .lifts = lifts_.data(),
                                  .seqlen = problem_.seqlen,
                                  .num_kv_heads = problem_.num_kv_heads,
                                  .num_blocks = num_blocks_},
                  input.elements());
    }
    BlockEnergyPlanner::prepare(input, kernels);
  }

  BlockEnergyArgs energy_rule() const override {
    return {.rule = BlockEnergyRule::kRbs,
            .lifts = settings_.alpha_rescue.has_value() ? lifts_.data() : nullptr,
            .alpha = settings_.alpha_base,
            .alpha_lifted = settings_.alpha_rescue.value_or(0.0f),
            .sink_blocks = settings_.forced.sink_blocks,
            .window_blocks = settings_.forced.window_blocks,
            .last_tiles = settings_.forced.last_tiles};
  }

  const RbsSettings settings_;
  Workspace::Array<float> radii_, lifts_;
};

}  // namespace

std::unique_ptr<Planner> rbs_planner(const Problem& problem, const RbsSettings& settings,
                                     const PlannerLimits& limits) {
  return std::make_unique<RbsPlanner>(problem, settings, limits);
}

}  // namespace s2o
