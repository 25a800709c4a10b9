// mbarrier objects in shared memory (sm_90): arrivals, transaction bytes, waits by phase parity.
//
// A barrier counts down its arrivals and, for bulk copies, the bytes expected; when both reach zero
// the phase completes and the count starts again. Waiting for parity p returns once the phase of
// that parity has completed: a fresh barrier lets waits for parity 1 pass.
#pragma once

#include "kernels/device/platform.cuh"

namespace s2o::device {

using Barrier = std::uint64_t;

#if defined(__CUDACC__)

S2O_DEVICE void barrier_init(Barrier* barrier, int arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(barrier)),
               "r"(arrivals)
               : "memory");
}
// Makes initialised barriers visible to bulk copies; a block barrier must follow.
S2O_DEVICE void barrier_init_fence() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}
S2O_DEVICE void barrier_arrive(Barrier* barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(barrier))
               : "memory");
}
S2O_DEVICE void barrier_arrive(Barrier* barrier, int count) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(barrier)),
               "r"(count)
               : "memory");
}
// One arrival, and `bytes` of bulk copies must complete in this phase.
S2O_DEVICE void barrier_arrive_expect(Barrier* barrier, int bytes) {
  asm volatile(
      "mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(barrier)),
      "r"(bytes)
      : "memory");
}
// One arrival of this thread once all of its cp.async copies issued so far have landed. The count
// given at initialisation includes it (noinc).
S2O_DEVICE void barrier_arrive_after_copies(Barrier* barrier) {
  asm volatile("cp.async.mbarrier.arrive.noinc.shared::cta.b64 [%0];" ::"r"(shared_address(barrier))
               : "memory");
}
S2O_DEVICE void barrier_wait(Barrier* barrier, int parity) {
  asm volatile(
      "{\n"
      ".reg .pred done;\n"
      "WAIT_LOOP:\n"
      "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
      "@done bra WAIT_DONE;\n"
      "bra WAIT_LOOP;\n"
      "WAIT_DONE:\n"
      "}" ::"r"(shared_address(barrier)),
      "r"(parity)
      : "memory");
}

#else

inline void barrier_init(Barrier* barrier, int arrivals) { simt::mbarrier_init(barrier, arrivals); }
inline void barrier_init_fence() {}
inline void barrier_arrive(Barrier* barrier) { simt::mbarrier_arrive(barrier, 1, 0); }
inline void barrier_arrive(Barrier* barrier, int count) {
  simt::mbarrier_arrive(barrier, count, 0);
}
inline void barrier_arrive_expect(Barrier* barrier, int bytes) {
  simt::mbarrier_arrive(barrier, 1, bytes);
}
inline void barrier_arrive_after_copies(Barrier* barrier) {
  simt::mbarrier_arrive_after_copies(barrier);
}
inline void barrier_wait(Barrier* barrier, int parity) { simt::mbarrier_wait(barrier, parity); }

#endif

}  // namespace s2o::device
