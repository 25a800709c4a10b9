#include "kernels/testing/device_fault.h"

namespace s2o::testing {
namespace {

__global__ void failing_kernel() { __trap(); }

}  // namespace

void launch_failing_kernel() { failing_kernel<<<1, 1>>>(); }

}  // namespace s2o::testing
