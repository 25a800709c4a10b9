// Stackful coroutines for the CPU model of a grid. Tests only.
#pragma once

#include <cstddef>

#if !defined(__x86_64__)
#include <ucontext.h>
#endif

namespace s2o::simt {

// One flow of control. Default-constructed: the flow of the caller. Not copyable, not movable once
// started; the stack is freed without unwinding.
class FiberContext {
 public:
  FiberContext() = default;
  ~FiberContext();
  FiberContext(const FiberContext&) = delete;
  FiberContext& operator=(const FiberContext&) = delete;

  // Gives this flow a stack and the function it will run; the function must never return.
  void prepare(void (*entry)());
  // Saves the running flow in `*this` and goes on with `next`.
  void switch_to(FiberContext& next);

 private:
  static constexpr std::size_t kStackBytes = 512 * 1024;
  void* stack_ = nullptr;
#if defined(__x86_64__)
  void* stack_pointer_ = nullptr;
#else
  ucontext_t context_{};
#endif
};

}  // namespace s2o::simt
