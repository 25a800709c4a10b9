// Operations of XAttention.
#include "kernels/planning/xattention/stride_mass.cuh"
#include "kernels/planning/xattention/stride_sums.cuh"
#include "kernels/planning/xattention/xattention_row.cuh"

namespace s2o::device {

void run_op(const PlanDevice& device, const XAttentionSumArgs& args, const Elements& elements) {
  dispatch_elements(elements, [&]<class Element, int kHeadDim>() {
    device.launch<StrideSumsKernel<Element, kHeadDim>>(args);
  });
}

void run_op(const PlanDevice& device, const XAttentionMassArgs& args, const Elements& elements) {
  dispatch_element_type(elements, [&]<class Element>() {
    dispatch_columns(args.columns_per_block, [&]<int kColumnsPerBlock>() {
      device.launch<StrideMassKernel<Element, kColumnsPerBlock>>(args);
    });
  });
}

void run_op(const PlanDevice& device, const XAttentionRowArgs& args, const Elements& elements) {
  dispatch_element_type(elements, [&]<class Element>() {
    device.launch<SelectRowsKernel<XAttentionRow<Element>, XAttentionRowArgs>>(args);
  });
}

}  // namespace s2o::device
