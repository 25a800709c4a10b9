// Operations on the softmax of the last queries.
#include "kernels/planning/last_queries/last_queries.cuh"

namespace s2o::device {

void run_op(const PlanDevice& device, const LastQueryArgs& args, const Elements& elements) {
  dispatch_elements(elements, [&]<class Element, int kHeadDim>() {
    device.launch<ReduceLastQueriesKernel<Element, kHeadDim>>(args);
    device.launch<CombineLastQueriesKernel>(args);
    device.launch<SumLastQueriesKernel<Element, kHeadDim>>(args);
  });
  if (args.distance_mass != nullptr) device.launch<CombineDistancesKernel>(args);
}

}  // namespace s2o::device
