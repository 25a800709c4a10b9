// Operations of FlexPrefill.
#include "kernels/planning/flexprefill/flex_heads.cuh"
#include "kernels/planning/flexprefill/flex_rows.cuh"

namespace s2o::device {

void run_op(const PlanDevice& device, const FlexHeadArgs& args, const Elements& elements) {
  dispatch_elements(elements, [&]<class Element, int kHeadDim>() {
    device.launch<FlexHeadsKernel<Element, kHeadDim>>(args);
  });
}

void run_op(const PlanDevice& device, const FlexMeanArgs& args, const Elements& elements) {
  dispatch_elements(elements, [&]<class Element, int kHeadDim>() {
    device.launch<ScaleQueryMeansKernel<Element, kHeadDim>>(args);
  });
}

void run_op(const PlanDevice& device, const FlexCutArgs& args, const Elements& elements) {
  dispatch_element_type(
      elements, [&]<class Element>() { device.launch<FlexSoftmaxKernel<Element>>(args.rows); });
  device.launch<FlexCutKernel>(args.rows);
}

void run_op(const PlanDevice& device, const FlexRowArgs& args, const Elements& /*elements*/) {
  device.launch<FlexItemsKernel>(args);
}

}  // namespace s2o::device
