// Builds without CUDA: make_cuda_prefill that says so.
#include <fmt/format.h>

#include "lib/core/error.h"
#include "lib/prefill/prefill_backend.h"

#if !defined(S2O_HAS_CUDA)

namespace s2o {

std::unique_ptr<PrefillBackend> make_cuda_prefill(PrefillModel, int device_index,
                                                  const std::string&) {
  throw UnsupportedError(
      fmt::format("device cuda:{}: this build has no CUDA kernels (configure with -DS2O_CUDA=ON)",
                  device_index));
}

}  // namespace s2o

#endif
