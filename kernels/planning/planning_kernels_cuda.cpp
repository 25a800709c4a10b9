#include <cuda_runtime.h>

#include "kernels/common/cuda_check.h"
#include "kernels/planning/cuda_planning_kernels.h"
#include "kernels/planning/run_op.h"

namespace s2o {

void CudaPlanningKernels::clear(void* array, std::size_t bytes) {
  if (bytes > 0) cuda_check(cudaMemsetAsync(array, 0, bytes, stream_), "planning: clear");
}

void CudaPlanningKernels::enqueue(const AnyOp& op) {
  device::run_any_op(device::CudaPlanDevice{stream_}, variant_, op);
}

}  // namespace s2o
