// Antidiagonal sums of XAttention by warpgroup products.
#include "kernels/planning/xattention/stride_sums_sm90.cuh"

namespace s2o::device {

bool run_op_sm90(const PlanDevice& device, const XAttentionSumArgs& args,
                 const Elements& elements) {
  dispatch_elements(elements, [&]<class Element, int kHeadDim>() {
    dispatch_columns(args.columns_per_block, [&]<int kColumnsPerBlock>() {
      device.launch_sm90<StrideSumsSm90Kernel<Element, kHeadDim, kColumnsPerBlock>>(args, elements);
    });
  });
  return true;
}

}  // namespace s2o::device
