// Normalisers and scores from clusters by warpgroup products.
#include "kernels/planning/s2o/cluster_scores_sm90.cuh"
#include "kernels/planning/s2o/estimate_lse_sm90.cuh"

namespace s2o::device {

bool run_op_sm90(const PlanDevice& device, const LseArgs& args, const Elements& elements) {
  dispatch_elements(elements, [&]<class Element, int kHeadDim>() {
    device.launch_sm90<EstimateLseSm90Kernel<Element, kHeadDim>>(args, elements);
  });
  return true;
}

bool run_op_sm90(const PlanDevice& device, const ClusterScoreArgs& args, const Elements& elements) {
  dispatch_elements(elements, [&]<class Element, int kHeadDim>() {
    device.launch_sm90<ClusterScoresSm90Kernel<Element, kHeadDim>>(args, elements);
  });
  return true;
}

}  // namespace s2o::device
