#include <cuda_runtime.h>

#include <nlohmann/json.hpp>

#include "kernels/common/cuda_check.h"
#include "kernels/common/current_device.h"
#include "kernels/common/kernel_registry.h"
#include "kernels/common/stream.h"
#include "lib/device/cuda_device.h"
#include "lib/device/l2_flush.h"
#include "lib/planning/device_planner.h"

namespace s2o {

DeviceInfo require_cuda_device(int device_index) {
  const CudaStatus status = query_cuda();
  const std::string name = "device cuda:" + std::to_string(device_index) + ": ";
  if (!status.problem.empty()) throw UnsupportedError(name + status.problem);
  const int count = static_cast<int>(status.devices.size());
  if (device_index < 0 || device_index >= count) {
    throw UnsupportedError(name + "this machine has " + std::to_string(count) +
                           " CUDA device(s), numbered from 0");
  }
  return status.devices[static_cast<std::size_t>(device_index)];
}

CudaDevice open_cuda_device(int device_index, const std::string& kernel_variant) {
  const DeviceInfo info = require_cuda_device(device_index);
  cuda_check(cudaSetDevice(device_index), "select device");
  const bool sm90 = choose_kernel("attention", info, kernel_variant).variant == "sm90";
  return {.info = info,
          .attention = sm90 ? AttentionKernel::kSm90 : AttentionKernel::kSm80,
          .planning = planning_variant(info, kernel_variant)};
}

std::string lost_device(int device_index) {
  // A lost device may refuse, and then says why.
  (void)cudaSetDevice(device_index);
  const cudaError_t status = cudaDeviceSynchronize();
  if (status == cudaSuccess) return "";
  return "device cuda:" + std::to_string(device_index) +
         " is lost to this process: " + cudaGetErrorString(status) + " (" +
         cudaGetErrorName(status) + ")";
}

nlohmann::ordered_json device_context(const CudaDevice& device) {
  const CudaStatus status = query_cuda();
  const CurrentDevice current(device.info.index);
  constexpr int kFlushes = 1000;  // some 50 ms
  const Stream stream;
  L2Flush l2_flush(device.info);
  for (int i = 0; i < kFlushes; ++i) l2_flush.enqueue(stream.get());
  const double clock_mhz = multiprocessor_clock_mhz(device.info.index);
  stream.synchronize();
  nlohmann::ordered_json context = {{"device", device.info.name},
                                    {"driver", status.driver_version},
                                    {"cuda", status.runtime_version},
                                    {"sm_clock_mhz", nullptr}};
  if (clock_mhz > 0.0) context["sm_clock_mhz"] = clock_mhz;
  return context;
}

}  // namespace s2o
