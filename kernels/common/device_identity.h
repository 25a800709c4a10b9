// Which piece of hardware a CUDA device number means. Host-safe; exists in CUDA builds only
// (S2O_HAS_CUDA).
#pragma once

#include <string>

namespace s2o {

// The same for all processes of a machine, whatever numbers they see.
std::string device_identity(int device_index);

}  // namespace s2o
