// Builds without CUDA: make_cuda_prefill says so.
#include <fmt/format.h>

#include "lib/core/error.h"
#include "lib/prefill/prefill_backend.h"

#if !defined(S2O_HAS_CUDA)

namespace s2o {

std::unique_ptr<PrefillBackend> make_cuda_prefill(PrefillModel /*model*/, int device_index,
                                                  const std::string& /*kernel_variant*/) {
  throw UnsupportedError(
      fmt::format("device cuda:{}: this build has no CUDA kernels (configure with -DS2O_CUDA=ON)",
                  device_index));
}

SumStatus query_sums() {
  return {.detail = "this build has no CUDA kernels (configure with -DS2O_CUDA=ON)"};
}
std::string sums_build_text() { return "without NCCL"; }

}  // namespace s2o

#endif
