// Operations of MeanPooling.
#include "kernels/planning/mean_pooling/mean_pooling_row.cuh"

namespace s2o::device {

void run_op(const PlanDevice& device, const MeanPoolingRowArgs& args, const Elements& elements) {
  dispatch_element_type(elements, [&]<class Element>() {
    device.launch<SelectRowsKernel<MeanPoolingRow<Element>, MeanPoolingRowArgs>>(args);
  });
}

}  // namespace s2o::device
