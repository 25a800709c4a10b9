// Prefill on CUDA devices: one, or several that share a model.
#include "kernels/model/all_reduce.h"
#include "lib/prefill/parallel_prefill.h"
#include "lib/prefill/slice_prefill.h"

namespace s2o {

SumStatus query_sums() {
  const NcclStatus nccl = query_nccl();
  return {.usable = nccl.usable,
          .detail = nccl.usable ? nccl.detail + "; one prompt over GPUs: s2o prefill --parallel N"
                                : nccl.detail};
}
std::string sums_build_text() { return nccl_build_text(); }

std::unique_ptr<PrefillBackend> make_cuda_prefill(PrefillModel model, int device_index,
                                                  const std::string& kernel_variant) {
  const auto shared = std::make_shared<const PrefillModel>(std::move(model));
  if (shared->parallel > 1) {
    return make_parallel_prefill(shared, device_index, kernel_variant);
  }
  const ModelSlice whole = slice_model(shared->config, 0, 1);
  return std::make_unique<SlicePrefill>(shared, whole, device_index, kernel_variant);
}

}  // namespace s2o
