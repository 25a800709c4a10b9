// Classes of keys by warpgroup products.
#include "kernels/planning/s2o/mean_classes_sm90.cuh"

namespace s2o::device {

bool run_op_sm90(const PlanDevice& device, const MeanClassArgs& args, const Elements& elements) {
  dispatch_elements(elements, [&]<class Element, int kHeadDim>() {
    device.launch_sm90<MeanClassesSm90Kernel<Element, kHeadDim>>(args, elements);
  });
  return true;
}

}  // namespace s2o::device
