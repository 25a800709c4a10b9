#include "lib/methods/common/device_planning.h"

#include "lib/methods/common/block_selection.h"

namespace s2o {

PlannedFold planned_fold(const ParamSet& params, int block) {
  const Compensation kind = compensation_of(params);
  if (kind == Compensation::kNone) return {};
  return {.rule = {.kind = kind, .fold_block = block}};
}

void apply_fold(const PlannedFold& fold, const Problem& problem, SparsePlan& plan) {
  plan.header.fold = fold.rule;
  if (fold.rule.kind == Compensation::kNone) return;
  std::vector<std::int32_t>& ends = plan.passes[0].fold_end;
  for (int head = 0; head < plan.header.num_plan_heads; ++head) {
    for (int tile = 0; tile < plan.header.num_q_tiles; ++tile) {
      const std::int64_t first = tile_rows(problem, plan.header, tile).first_position;
      ends.push_back(static_cast<std::int32_t>(first / fold.step() * fold.step()));
    }
  }
}

bool rounds_officially(const DevicePlanningRequest& request) {
  return request.dtype != StorageDType::kF32 && request.params.get_choice("rounding") == "official";
}

}  // namespace s2o
