// Asks for a line of global memory that is read soon.
#pragma once

#include "kernels/device/platform.cuh"

namespace s2o::device {

#if defined(__CUDACC__)
S2O_DEVICE void prefetch_global(const void* pointer) {
  asm volatile("prefetch.global.L1 [%0];" ::"l"(pointer));
}
#else
inline void prefetch_global(const void*) {}
#endif

}  // namespace s2o::device
