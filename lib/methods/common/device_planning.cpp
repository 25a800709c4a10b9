#include "lib/methods/common/device_planning.h"

namespace s2o {

PlannedFold planned_fold(const ParamSet& params, int block) {
  const std::string& kind = params.get_choice("compensation");
  PlannedFold fold;
  fold.rule.fold_block = block;
  fold.rule.kind = kind == "none"       ? Compensation::kNone
                   : kind == "centroid" ? Compensation::kCentroid
                   : kind == "blocks"   ? Compensation::kBlocks
                                        : Compensation::kBlocksVariance;
  if (fold.rule.kind == Compensation::kNone) fold.rule = FoldRule{};
  return fold;
}

bool rounds_officially(const DevicePlanningRequest& request) {
  return request.dtype != StorageDType::kF32 && request.params.get_choice("rounding") == "official";
}

}  // namespace s2o
