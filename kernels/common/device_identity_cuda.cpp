#include "kernels/common/device_identity.h"

#include <cuda_runtime.h>

#include "kernels/common/cuda_check.h"

namespace s2o {

std::string device_identity(int device_index) {
  cudaDeviceProp properties{};
  cuda_check(cudaGetDeviceProperties(&properties, device_index), "device properties");
  // The bus alone would not tell apart the parts of a GPU that is divided.
  constexpr char kDigits[] = "0123456789abcdef";
  std::string text = "GPU-";
  for (const char byte : properties.uuid.bytes) {
    const auto value = static_cast<unsigned char>(byte);
    text += kDigits[value >> 4];
    text += kDigits[value & 15];
  }
  return text;
}

}  // namespace s2o
