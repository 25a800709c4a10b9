// Operations of methods that select blocks by pooled queries and keys.
#include "kernels/planning/pooled/block_scores.cuh"
#include "kernels/planning/pooled/pool_blocks.cuh"

namespace s2o::device {

void run_op(const PlanDevice& device, const PoolArgs& args, const Elements& elements) {
  dispatch_elements(elements, [&]<class Element, int kHeadDim>() {
    device.launch<PoolBlocksKernel<Element, kHeadDim>>(args);
  });
}

void run_op(const PlanDevice& device, const BlockScoreArgs& args, const Elements& elements) {
  dispatch_elements(elements, [&]<class Element, int kHeadDim>() {
    device.launch<BlockScoresKernel<Element, kHeadDim>>(args);
  });
}

}  // namespace s2o::device
