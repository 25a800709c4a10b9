#include "lib/methods/common/device_planning.h"

#include "lib/methods/common/block_selection.h"

namespace s2o {

PlannedFold planned_fold(const ParamSet& params, int block) {
  const Compensation kind = compensation_of(params);
  if (kind == Compensation::kNone) return {};
  return {.rule = {.kind = kind, .fold_block = block}};
}

bool rounds_officially(const DevicePlanningRequest& request) {
  return request.dtype != StorageDType::kF32 && request.params.get_choice("rounding") == "official";
}

}  // namespace s2o
