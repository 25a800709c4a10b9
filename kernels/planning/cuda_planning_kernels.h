// Planning kernels on a CUDA stream. Host-safe header; exists in CUDA builds (S2O_HAS_CUDA). Every
// call throws CudaError when the launch is refused.
#pragma once

#include "kernels/common/cuda_stream.h"
#include "kernels/planning/op.h"

namespace s2o {

class CudaPlanningKernels final : public PlanningKernels {
 public:
  CudaPlanningKernels(CudaStream stream, PlanningVariant variant)
      : stream_(stream), variant_(variant) {}
  void clear(void* array, std::size_t bytes) override;
  void enqueue(const AnyOp& op) override;

 private:
  CudaStream stream_;
  PlanningVariant variant_;
};

}  // namespace s2o
