#include <cuda_runtime.h>
#include <dlfcn.h>

#include "kernels/common/cuda_check.h"
#include "kernels/common/device_info.h"

namespace s2o {
namespace {

std::string version_text(int version) {
  return std::to_string(version / 1000) + "." + std::to_string(version % 1000 / 10);
}

DeviceInfo query_device(int index) {
  cudaDeviceProp properties{};
  cuda_check(cudaGetDeviceProperties(&properties, index), "device properties");
  DeviceInfo info;
  info.index = index;
  info.name = properties.name;
  info.compute_capability = properties.major * 10 + properties.minor;
  info.num_multiprocessors = properties.multiProcessorCount;
  info.shared_bytes_per_block = static_cast<std::int64_t>(properties.sharedMemPerBlockOptin);
  info.l2_bytes = properties.l2CacheSize;
  info.total_bytes = static_cast<std::int64_t>(properties.totalGlobalMem);
  return info;
}

}  // namespace

CudaStatus query_cuda() {
  CudaStatus status;
  int runtime = 0;
  int driver = 0;
  cuda_check(cudaRuntimeGetVersion(&runtime), "runtime version");
  status.runtime_version = version_text(runtime);
  // Without a driver the version is 0; the runtime's own message then speaks of an old driver.
  if (cudaDriverGetVersion(&driver) != cudaSuccess || driver == 0) {
    (void)cudaGetLastError();
    status.problem = "no CUDA driver on this machine";
    return status;
  }
  status.driver_version = version_text(driver);
  int count = 0;
  const cudaError_t result = cudaGetDeviceCount(&count);
  if (result == cudaErrorInsufficientDriver) {
    (void)cudaGetLastError();
    status.problem = "the driver supports CUDA " + status.driver_version +
                     ", this build's runtime is " + status.runtime_version;
    return status;
  }
  if (result == cudaErrorNoDevice || (result == cudaSuccess && count == 0)) {
    (void)cudaGetLastError();
    status.problem = "no CUDA device on this machine";
    return status;
  }
  cuda_check(result, "count devices");
  for (int index = 0; index < count; ++index) status.devices.push_back(query_device(index));
  return status;
}

std::int64_t free_device_bytes() {
  std::size_t free_bytes = 0;
  std::size_t total_bytes = 0;
  cuda_check(cudaMemGetInfo(&free_bytes, &total_bytes), "free device memory");
  return static_cast<std::int64_t>(free_bytes);
}

double multiprocessor_clock_mhz(int device_index) {
  // Loaded at run time: the binary must start on machines without the management library.
  void* library = dlopen("libnvidia-ml.so.1", RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) return 0.0;
  const auto symbol = [library]<class Function>(const char* name, Function*& function) {
    function = reinterpret_cast<Function*>(dlsym(library, name));
    return function != nullptr;
  };
  int (*init)() = nullptr;
  int (*shutdown)() = nullptr;
  int (*handle_by_bus)(const char*, void**) = nullptr;
  int (*clock_info)(void*, int, unsigned*) = nullptr;
  char bus_id[32] = {};
  double clock_mhz = 0.0;
  if (symbol("nvmlInit_v2", init) && symbol("nvmlShutdown", shutdown) &&
      symbol("nvmlDeviceGetHandleByPciBusId_v2", handle_by_bus) &&
      symbol("nvmlDeviceGetClockInfo", clock_info) &&
      cudaDeviceGetPCIBusId(bus_id, sizeof(bus_id), device_index) == cudaSuccess && init() == 0) {
    constexpr int kClockOfMultiprocessors = 1;  // NVML_CLOCK_SM
    void* device = nullptr;
    unsigned clock = 0;
    if (handle_by_bus(bus_id, &device) == 0 &&
        clock_info(device, kClockOfMultiprocessors, &clock) == 0) {
      clock_mhz = clock;
    }
    shutdown();
  }
  dlclose(library);
  return clock_mhz;
}

}  // namespace s2o
