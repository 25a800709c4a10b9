// Operations of S2O's rankings beyond the mean query.
#include "kernels/planning/s2o/block_moments.cuh"
#include "kernels/planning/s2o/cluster_queries.cuh"
#include "kernels/planning/s2o/cluster_scores.cuh"
#include "kernels/planning/s2o/estimate_lse.cuh"

namespace s2o::device {

void run_op(const PlanDevice& device, const MomentArgs& args, const Elements& elements) {
  dispatch_elements(elements, [&]<class Element, int kHeadDim>() {
    device.launch<BlockMomentsKernel<Element, kHeadDim>>(args);
  });
}

void run_op(const PlanDevice& device, const LseArgs& args, const Elements& elements) {
  dispatch_elements(elements, [&]<class Element, int kHeadDim>() {
    device.launch<EstimateLseKernel<Element, kHeadDim>>(args);
  });
}

void run_op(const PlanDevice& device, const ClusterArgs& args, const Elements& elements) {
  dispatch_elements(elements, [&]<class Element, int kHeadDim>() {
    device.launch<ClusterQueriesKernel<Element, kHeadDim>>(args);
  });
}

void run_op(const PlanDevice& device, const ClusterScoreArgs& args, const Elements& elements) {
  dispatch_elements(elements, [&]<class Element, int kHeadDim>() {
    device.launch<ClusterScoresKernel<Element, kHeadDim>>(args);
  });
}

}  // namespace s2o::device
