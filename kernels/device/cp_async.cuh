// cp.async: 16-byte copies from global to shared memory that bypass registers (sm_80).
#pragma once

#include "kernels/device/platform.cuh"

namespace s2o::device {

#if defined(__CUDACC__)

// Copies 16 bytes, or writes 16 zero bytes when `valid` is false (the source is then not read).
S2O_DEVICE void copy_async_16(std::uint32_t target, const void* source, bool valid) {
  const int source_bytes = valid ? 16 : 0;
  asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;" ::"r"(target), "l"(source),
               "r"(source_bytes)
               : "memory");
}
S2O_DEVICE void copy_async_16(std::uint32_t target, const void* source) {
  asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16;" ::"r"(target), "l"(source)
               : "memory");
}
S2O_DEVICE void copy_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int kGroupsLeft>
S2O_DEVICE void copy_async_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kGroupsLeft) : "memory");
}

#else

inline void copy_async_16(std::uint32_t target_address, const void* source, bool valid) {
  void* const target = shared_pointer(target_address, 16);
  if (reinterpret_cast<std::uintptr_t>(source) % 16 != 0) {
    throw std::runtime_error("simt: cp.async needs a 16-byte aligned source");
  }
  std::memset(target, 0xff, 16);  // whoever reads before the wait sees NaN
  simt::async_copy([target, source, valid] {
    if (valid) {
      std::memcpy(target, source, 16);
    } else {
      std::memset(target, 0, 16);
    }
  });
}
inline void copy_async_16(std::uint32_t target_address, const void* source) {
  copy_async_16(target_address, source, true);
}
inline void copy_async_commit() { simt::async_copy_commit(); }
template <int kGroupsLeft>
void copy_async_wait() {
  simt::async_copy_wait(kGroupsLeft);
}

#endif

}  // namespace s2o::device
