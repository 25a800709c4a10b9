#include "lib/methods/pbs_attn/pbs_attn.h"

#include "kernels/planning/pbs_attn/ops.h"
#include "lib/methods/common/last_query_arrays.h"
#include "lib/methods/common/pooled_planner.h"

namespace s2o {
namespace {

class PbsPlanner final : public PooledPlanner {
 public:
  PbsPlanner(const Problem& problem, const PbsSettings& settings, const PlannerLimits& limits)
      : PooledPlanner(problem, settings.block, settings.block, problem.num_q_heads, settings.fold,
                      limits),
        settings_(settings),
        last_queries_(workspace_, problem, settings.block,
                      problem.seqlen / settings.segment * settings.segment,
                      /*by_distance=*/false) {
    const std::int64_t heads = problem.num_q_heads;
    sink_block_ = workspace_.add<std::int32_t>(heads);
    key_order_ = workspace_.add<std::int32_t>(heads * problem.seqlen);
  }

 private:
  void prepare(const DeviceInput& input, PlanningKernels& kernels) const override {
    kernels.run(last_queries_.args(input, bad_row_.data(), header_.num_q_tiles), input.elements());
    kernels.run(SegmentOrderArgs{.mass = last_queries_.mass.data(),
                                 .order = key_order_.data(),
                                 .sink_block = sink_block_.data(),
                                 .seqlen = problem_.seqlen,
                                 .num_keys = last_queries_.num_keys,
                                 .num_heads = problem_.num_q_heads,
                                 .segment = static_cast<std::int32_t>(settings_.segment),
                                 .block = settings_.block},
                input.elements());
    PooledPlanner::prepare(input, kernels);
  }

  void select_rows(const RowArgs& rows, const DeviceInput& input,
                   PlanningKernels& kernels) const override {
    kernels.run(
        PbsRowArgs{.rows = rows,
                   .threshold = static_cast<float>(settings_.threshold),
                   .segment_blocks = static_cast<std::int32_t>(settings_.segment / settings_.block),
                   .sink_block = sink_block_.data()},
        input.elements());
  }

  const PbsSettings settings_;
  const LastQueryArrays last_queries_;
  Workspace::Array<std::int32_t> sink_block_;
};

}  // namespace

bool pbs_attn_plans_on_device(const Problem& problem, const PbsSettings& settings) {
  return is_device_block(settings.block) && settings.segment % settings.block == 0 &&
         settings.segment <= kMaxOrderedSegment && settings.segment < problem.seqlen;
}

std::unique_ptr<Planner> pbs_attn_planner(const Problem& problem, const PbsSettings& settings,
                                          const PlannerLimits& limits) {
  return std::make_unique<PbsPlanner>(problem, settings, limits);
}

}  // namespace s2o
