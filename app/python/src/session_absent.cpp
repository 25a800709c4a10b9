// Builds without CUDA: every call on a CUDA device says so.
#include "app/python/src/own_array.h"
#include "app/python/src/session.h"
#include "lib/core/error.h"

namespace s2o::python {
namespace {

[[noreturn]] void absent(int device) {
  throw UnsupportedError("cuda:" + std::to_string(device) +
                         ": this build of s2o has no CUDA kernels; build it where nvcc is, or pass "
                         "arrays on the CPU");
}

}  // namespace

std::optional<std::vector<RunWork>> attend_cuda(const Setting& /*setting*/, const Call& call,
                                                std::uintptr_t /*stream*/, bool /*check*/,
                                                bool /*wants_work*/) {
  absent(call.device);
}
std::unique_ptr<Plan> make_plan_cuda(const Setting& /*setting*/, const Call& call,
                                     std::uintptr_t /*stream*/, bool /*check*/) {
  absent(call.device);
}
std::shared_ptr<void> device_memory(int device, std::size_t /*bytes*/) { absent(device); }
void wait_for_default_stream(int device) { absent(device); }
void clear_cache() {}
std::int64_t cache_bytes() { return 0; }

}  // namespace s2o::python
