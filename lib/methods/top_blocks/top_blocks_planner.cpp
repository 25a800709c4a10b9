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

  void plan(const DeviceInput& input, PlanningKernels& kernels) const override {
    kernels.clear(bad_row_.data(), bad_row_.size_bytes());
    PoolArgs queries = pool_queries(input);  // step 1
    PoolArgs keys = pool_keys(input);
    queries.divide_by_block = keys.divide_by_block = true;
    kernels.run(queries, input.elements());
    kernels.run(keys, input.elements());
    plan_next(0, input, kernels);  // step 2, strip by strip
  }

 private:
  void select_rows(const RowArgs& rows, const DeviceInput& input,
                   PlanningKernels& kernels) const override {  // step 3
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
