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

  void plan(const DeviceInput& input, PlanningKernels& kernels) const override {
    kernels.clear(bad_row_.data(), bad_row_.size_bytes());
    PoolArgs queries = pool_queries(input);
    PoolArgs keys = pool_keys(input);
    queries.divide_by_block = keys.divide_by_block = true;
    kernels.run(queries, input.elements());
    kernels.run(keys, input.elements());
    plan_next(0, input, kernels);
  }

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
