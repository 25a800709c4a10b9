#include "kernels/planning/top_blocks/ops.h"
#include "lib/methods/common/pooled_planner.h"
#include "lib/methods/top_blocks/top_blocks.h"

namespace s2o {
namespace {

class TopBlocksPlanner final : public PooledPlanner {
 public:
  TopBlocksPlanner(const Problem& problem, const TopBlocksSettings& settings,
                   const PlannerLimits& limits)
      : PooledPlanner(problem, settings.block, settings.block, problem.num_kv_heads, settings.fold,
                      limits),
        topk_(settings.topk) {}

 private:
  void select_rows(const RowArgs& rows, const DeviceInput& input,
                   PlanningKernels& kernels) const override {
    kernels.run(TopBlocksRowArgs{.rows = rows, .topk = topk_}, input.elements());
  }

  const std::int32_t topk_;
};

}  // namespace

std::unique_ptr<Planner> top_blocks_planner(const Problem& problem,
                                            const TopBlocksSettings& settings,
                                            const PlannerLimits& limits) {
  return std::make_unique<TopBlocksPlanner>(problem, settings, limits);
}

}  // namespace s2o
