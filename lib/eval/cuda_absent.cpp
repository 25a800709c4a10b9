// Builds without CUDA: the functions of backend_cuda.h that say so.
#include <fmt/format.h>

#include "kernels/common/kernel_registry.h"
#include "lib/core/error.h"
#include "lib/eval/backend_cuda.h"

#if !defined(S2O_HAS_CUDA)

namespace s2o {
namespace {

constexpr const char* kNoCuda = "this build has no CUDA kernels (configure with -DS2O_CUDA=ON)";

}  // namespace

std::unique_ptr<Backend> make_cuda_backend(int device_index, const std::string&) {
  throw UnsupportedError(fmt::format("device cuda:{}: {}", device_index, kNoCuda));
}

std::string cuda_refusal() { return kNoCuda; }

std::vector<BackendItem> list_cuda_kernels() {
  std::vector<BackendItem> items;
  for (const KernelInfo& kernel : all_kernels()) {
    if (kernel.min_compute_capability == 0) continue;
    items.push_back({.name = kernel.name, .usable = false, .detail = kNoCuda});
  }
  return items;
}

std::vector<BackendItem> list_cuda_devices() {
  return {{.name = "cuda", .usable = false, .detail = kNoCuda}};
}

}  // namespace s2o

#endif
