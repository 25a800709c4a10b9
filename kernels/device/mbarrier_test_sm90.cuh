// A look at an mbarrier (mbarrier_sm90.cuh) that does not wait.
#pragma once

#include "kernels/device/mbarrier_sm90.cuh"

namespace s2o::device {

#if defined(__CUDACC__)
// Whether the phase of that parity has completed.
S2O_DEVICE bool barrier_test(Barrier* barrier, int parity) {
  std::uint32_t done;
  asm volatile(
      "{\n"
      ".reg .pred done;\n"
      "mbarrier.test_wait.parity.shared::cta.b64 done, [%1], %2;\n"
      "selp.u32 %0, 1, 0, done;\n"
      "}"
      : "=r"(done)
      : "r"(shared_address(barrier)), "r"(parity)
      : "memory");
  return done != 0;
}
#else
inline bool barrier_test(Barrier* barrier, int parity) {
  return simt::mbarrier_test(barrier, parity);
}
#endif

}  // namespace s2o::device
