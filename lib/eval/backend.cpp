#include "lib/eval/backend.h"

#include <fmt/format.h>

#include "lib/core/error.h"
#include "lib/core/log.h"
#include "lib/core/memory.h"
#include "lib/core/text.h"
#include "lib/eval/backend_cpu.h"
#include "lib/eval/backend_cuda.h"

namespace s2o {
namespace {

constexpr const char* kCpuKernel = "ref";

}  // namespace

DeviceChoice resolve_device(const DeviceChoice& device, const std::string& kernel) {
  if (kernel == "auto") return device;
  const DeviceKind needed = kernel == kCpuKernel ? DeviceKind::kCpu : DeviceKind::kCuda;
  if (device.kind == DeviceKind::kAuto) return {.kind = needed};
  if (device.kind != needed) {
    throw ConfigError(fmt::format("kernel {} runs on {}, but the device is {}", kernel,
                                  device_text({.kind = needed}), device_text(device)));
  }
  return device;
}

std::unique_ptr<Backend> make_backend(const DeviceChoice& device, const std::string& kernel) {
  const DeviceChoice resolved = resolve_device(device, kernel);
  const std::string variant = kernel == "auto" ? "" : kernel;
  if (resolved.kind == DeviceKind::kCuda) return make_cuda_backend(resolved.index, variant);
  if (resolved.kind == DeviceKind::kCpu) return make_cpu_backend();
  const std::string refusal = cuda_refusal();
  if (refusal.empty()) {
    auto backend = make_cuda_backend(0, variant);
    log_info("device auto: cuda:0, {}", backend->kernel());
    return backend;
  }
  log_info("device auto: cpu, because {}", refusal);
  return make_cpu_backend();
}

std::vector<BackendItem> list_kernels() {
  std::vector<BackendItem> items = {
      {.name = "attention_ref", .usable = true, .detail = "attention on the CPU (Eigen, fp32)"}};
  for (BackendItem& item : list_cuda_kernels()) items.push_back(std::move(item));
  return items;
}

std::vector<BackendItem> list_devices() {
  const std::string memory =
      bytes_text(static_cast<double>(available_memory_bytes())) + " of memory free";
  std::vector<BackendItem> items = {
      {.name = "cpu", .usable = true, .detail = cpu_description() + ", " + memory}};
  for (BackendItem& item : list_cuda_devices()) items.push_back(std::move(item));
  return items;
}

}  // namespace s2o
