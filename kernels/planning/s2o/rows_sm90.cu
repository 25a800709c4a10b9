// Operations of the ranking by rows. Conversions to e4m3 and warpgroup products: sm_90a only.
#include "kernels/planning/s2o/pack_keys.cuh"
#include "kernels/planning/s2o/pack_queries_sm90.cuh"
#include "kernels/planning/s2o/probe_rows_sm90.cuh"
#include "kernels/planning/s2o/rank_rows_sm90.cuh"
#include "kernels/planning/s2o/row_profile.cuh"

namespace s2o::device {

bool run_op_sm90(const PlanDevice& device, const RowProfileArgs& args, const Elements& elements) {
  dispatch_elements(elements, [&]<class Element, int kHeadDim>() {
    device.launch_sm90<RowProfilesKernel<Element, kHeadDim>>(args, elements);
  });
  return true;
}

bool run_op_sm90(const PlanDevice& device, const PackKeysArgs& args, const Elements& elements) {
  dispatch_elements(elements, [&]<class Element, int kHeadDim>() {
    device.launch_sm90<PackKeysKernel<Element, kHeadDim>>(args, elements);
  });
  return true;
}

bool run_op_sm90(const PlanDevice& device, const PackQueriesArgs& args, const Elements& elements) {
  dispatch_elements(elements, [&]<class Element, int kHeadDim>() {
    device.launch_sm90<PackQueriesKernel<Element, kHeadDim>>(args, elements);
  });
  return true;
}

bool run_op_sm90(const PlanDevice& device, const FindReachArgs& args, const Elements& elements) {
  device.launch_sm90<ProbeRowsKernel>(args, elements);
  device.launch_sm90<FindReachesKernel>(args, elements);
  return true;
}

bool run_op_sm90(const PlanDevice& device, const RankRowsArgs& args, const Elements& elements) {
  device.launch_sm90<RankRowsKernel>(args, elements);
  return true;
}

}  // namespace s2o::device
