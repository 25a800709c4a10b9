// Operations of SpargeAttn.
#include "kernels/planning/sparge_attn/column_means.cuh"
#include "kernels/planning/sparge_attn/sparge_row.cuh"

namespace s2o::device {

void run_op(const PlanDevice& device, const ColumnMeanArgs& args, const Elements& elements) {
  dispatch_elements(elements, [&]<class Element, int kHeadDim>() {
    device.launch<ColumnSumsKernel<Element, kHeadDim>>(args);
    device.launch<ColumnMeansKernel<Element, kHeadDim>>(args);
  });
}

void run_op(const PlanDevice& device, const SpargeRowArgs& args, const Elements& elements) {
  dispatch_element_type(elements, [&]<class Element>() {
    device.launch<SelectRowsKernel<SpargeRow<Element>, SpargeRowArgs>>(args);
  });
}

}  // namespace s2o::device
