// A model over several GPUs of this machine. CUDA builds only.
#pragma once

#include <memory>
#include <string>

#include "lib/prefill/prefill_backend.h"

namespace s2o {

// On model->parallel GPUs from number `first_device` on. UnsupportedError where there are fewer, or
// no NCCL to sum with.
std::unique_ptr<PrefillBackend> make_parallel_prefill(
    const std::shared_ptr<const PrefillModel>& model, int first_device,
    const std::string& kernel_variant);

}  // namespace s2o
