// Operations of S2O.
#include "kernels/planning/s2o/key_scores.cuh"
#include "kernels/planning/s2o/mean_classes.cuh"
#include "kernels/planning/s2o/mean_cuts.cuh"
#include "kernels/planning/s2o/mean_queries.cuh"
#include "kernels/planning/s2o/order_classes.cuh"
#include "kernels/planning/s2o/query_order.cuh"
#include "kernels/planning/s2o/rank_history.cuh"

namespace s2o::device {

void run_op(const PlanDevice& device, const MeanQueryArgs& args, const Elements& elements) {
  dispatch_elements(elements, [&]<class Element, int kHeadDim>() {
    device.launch<MeanQueriesKernel<Element, kHeadDim>>(args);
  });
}

void run_op(const PlanDevice& device, const KeyScoreArgs& args, const Elements& elements) {
  dispatch_elements(elements, [&]<class Element, int kHeadDim>() {
    device.launch<KeyScoresKernel<Element, kHeadDim>>(args);
  });
}

void run_op(const PlanDevice& device, const MeanCutArgs& args, const Elements& elements) {
  dispatch_elements(elements, [&]<class Element, int kHeadDim>() {
    device.launch<MeanCutsKernel<Element, kHeadDim>>(args);
  });
}

void run_op(const PlanDevice& device, const MeanClassArgs& args, const Elements& elements) {
  dispatch_elements(elements, [&]<class Element, int kHeadDim>() {
    device.launch<MeanClassesKernel<Element, kHeadDim>>(args);
  });
}

void run_op(const PlanDevice& device, const RankArgs& args, const Elements& /*elements*/) {
  device.launch<RankHistoryKernel>(args);
}

void run_op(const PlanDevice& device, const ClassOrderArgs& args, const Elements& /*elements*/) {
  device.launch<OrderClassesKernel>(args);
}

void run_op(const PlanDevice& device, const QueryOrderArgs& args, const Elements& elements) {
  dispatch_elements(elements, [&]<class Element, int kHeadDim>() {
    device.launch<SumSegmentsKernel<Element, kHeadDim>>(args);
    device.launch<MakeGuidesKernel<kHeadDim>>(args);
    device.launch<OrderQueriesKernel<Element, kHeadDim>>(args);
  });
}

}  // namespace s2o::device
