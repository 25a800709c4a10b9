// Rarer operations on mbarriers (mbarrier_sm90.cuh): looks that do not wait, arrivals with a word,
// and waits for what is there.
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
// Writes `value` to `place` in shared memory and arrives, in the lanes that are active: without a
// jump.
S2O_DEVICE void store_and_arrive(std::uint32_t place, std::uint32_t value, Barrier* barrier,
                                 bool active) {
  asm volatile(
      "{\n"
      ".reg .pred active;\n"
      "setp.ne.u32 active, %2, 0;\n"
      "@active st.shared.u32 [%0], %1;\n"
      "}" ::"r"(place),
      "r"(value), "r"(static_cast<std::uint32_t>(active))
      : "memory");
  if (active) barrier_arrive(barrier);
}
#else
inline void store_and_arrive(std::uint32_t place, std::uint32_t value, Barrier* barrier,
                             bool active) {
  if (!active) return;
  std::memcpy(shared_pointer(place, 4), &value, sizeof(value));
  barrier_arrive(barrier);
}
inline bool barrier_test(Barrier* barrier, int parity) {
  return simt::mbarrier_test(barrier, parity);
}
#endif

}  // namespace s2o::device
