#include "lib/methods/mean_pooling/mean_pooling.h"

#include "kernels/planning/mean_pooling/ops.h"
#include "lib/methods/common/pooled_planner.h"

namespace s2o {
namespace {

class MeanPoolingPlanner final : public PooledPlanner {
 public:
  MeanPoolingPlanner(const Problem& problem, const MeanPoolingSettings& settings,
                     const PlannerLimits& limits)
      : PooledPlanner(problem, settings.block, settings.block, problem.num_kv_heads, settings.fold,
                      limits),
        threshold_(static_cast<float>(settings.threshold)) {}

 private:
  void select_rows(const RowArgs& rows, const DeviceInput& input,
                   PlanningKernels& kernels) const override {
    kernels.run(MeanPoolingRowArgs{.rows = rows, .threshold = threshold_}, input.elements());
  }

  const float threshold_;
};

}  // namespace

std::unique_ptr<Planner> mean_pooling_planner(const Problem& problem,
                                              const MeanPoolingSettings& settings,
                                              const PlannerLimits& limits) {
  return std::make_unique<MeanPoolingPlanner>(problem, settings, limits);
}

}  // namespace s2o
