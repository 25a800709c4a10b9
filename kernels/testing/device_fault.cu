#include "kernels/testing/device_fault.h"

namespace s2o::testing {
namespace {

__global__ void failing_kernel() { __trap(); }

}  // namespace

void launch_failing_kernel(int device) {
  int before = 0;
  (void)cudaGetDevice(&before);
  (void)cudaSetDevice(device);
  failing_kernel<<<1, 1>>>();
  (void)cudaSetDevice(before);
}

}  // namespace s2o::testing
