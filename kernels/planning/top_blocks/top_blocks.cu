// Operations of TopBlocks.
#include "kernels/planning/top_blocks/top_blocks_row.cuh"

namespace s2o::device {

void run_op(const PlanDevice& device, const TopBlocksRowArgs& args, const Elements& elements) {
  dispatch_element_type(elements, [&]<class Element>() {
    device.launch<SelectRowsKernel<TopBlocksRow<Element>, TopBlocksRowArgs>>(args);
  });
}

}  // namespace s2o::device
