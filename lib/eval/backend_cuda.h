// The CUDA backend; see backend.h. Builds without CUDA have the same functions (cuda_absent.cpp),
// which say so.
#pragma once

#include <memory>
#include <string>

#include "lib/eval/backend.h"

namespace s2o {

// Best kernel of the device, or the variant named ("sm80", "sm90"). UnsupportedError when it cannot
// run here.
std::unique_ptr<Backend> make_cuda_backend(int device_index, const std::string& kernel_variant);

// "" if some kernel of this build runs on some device of this machine, else why not.
std::string cuda_refusal();
std::vector<BackendItem> list_cuda_kernels();
std::vector<BackendItem> list_cuda_devices();

}  // namespace s2o
