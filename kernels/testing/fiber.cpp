#include "kernels/testing/fiber.h"

#include <sys/mman.h>

#include <cstdint>
#include <stdexcept>

#if defined(__x86_64__)
// Saves the callee-saved registers and the stack pointer, and takes over those of the other flow.
// The C library's swapcontext enters the kernel twice, which made the model ten times slower.
extern "C" void s2o_simt_switch(void** save, void* load);
asm(R"(
.text
.globl s2o_simt_switch
.type s2o_simt_switch, @function
s2o_simt_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size s2o_simt_switch, .-s2o_simt_switch
)");
#endif

namespace s2o::simt {

FiberContext::~FiberContext() {
  if (stack_ != nullptr) munmap(stack_, kStackBytes);
}

void FiberContext::prepare(void (*entry)()) {
  stack_ = mmap(nullptr, kStackBytes, PROT_READ | PROT_WRITE,
                MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (stack_ == MAP_FAILED) {
    stack_ = nullptr;
    throw std::runtime_error("simt: no memory for a fiber stack");
  }
#if defined(__x86_64__)
  // As the switch expects it: six registers, then the address to return to. At the entry of a
  // function the stack pointer is 8 beyond a multiple of 16.
  auto* top = reinterpret_cast<std::uintptr_t*>(static_cast<char*>(stack_) + kStackBytes);
  top[-1] = 0;
  top[-2] = reinterpret_cast<std::uintptr_t>(entry);
  stack_pointer_ = top - 8;
#else
  getcontext(&context_);
  context_.uc_stack.ss_sp = stack_;
  context_.uc_stack.ss_size = kStackBytes;
  context_.uc_link = nullptr;
  makecontext(&context_, entry, 0);
#endif
}

void FiberContext::switch_to(FiberContext& next) {
#if defined(__x86_64__)
  s2o_simt_switch(&stack_pointer_, next.stack_pointer_);
#else
  swapcontext(&context_, &next.context_);
#endif
}

}  // namespace s2o::simt
