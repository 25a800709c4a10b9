#include "lib/methods/flash_prefill/flash_prefill.h"

#include "lib/methods/common/block_energy_planner.h"

namespace s2o {
namespace {

class FlashPrefillPlanner final : public BlockEnergyPlanner {
 public:
  FlashPrefillPlanner(const Problem& problem, const FlashPrefillSettings& settings,
                      const PlannerLimits& limits)
      : BlockEnergyPlanner(problem, settings.is_v2 ? problem.group_size() : 1, settings.fold,
                           limits),
        settings_(settings) {}

 private:
  BlockEnergyArgs energy_rule() const override {
    return {.rule = settings_.is_v2 ? BlockEnergyRule::kFlashPrefillV2
                                    : BlockEnergyRule::kFlashPrefillV1,
            .alpha = settings_.alpha,
            .sink_blocks = settings_.forced.sink_blocks,
            .window_blocks = settings_.forced.window_blocks,
            .last_tiles = settings_.forced.last_tiles};
  }

  const FlashPrefillSettings settings_;
};

}  // namespace

std::unique_ptr<Planner> flash_prefill_planner(const Problem& problem,
                                               const FlashPrefillSettings& settings,
                                               const PlannerLimits& limits) {
  return std::make_unique<FlashPrefillPlanner>(problem, settings, limits);
}

}  // namespace s2o
