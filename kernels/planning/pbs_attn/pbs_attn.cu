// Operations of PBS-Attn.
#include "kernels/planning/pbs_attn/order_segments.cuh"
#include "kernels/planning/pbs_attn/pbs_row.cuh"

namespace s2o::device {

void run_op(const PlanDevice& device, const SegmentOrderArgs& args, const Elements& /*elements*/) {
  device.launch<OrderSegmentsKernel>(args);
}

void run_op(const PlanDevice& device, const PbsRowArgs& args, const Elements& elements) {
  dispatch_element_type(elements, [&]<class Element>() {
    device.launch<SelectRowsKernel<PbsRow<Element>, PbsRowArgs>>(args);
  });
}

}  // namespace s2o::device
