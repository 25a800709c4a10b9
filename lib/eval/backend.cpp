#include "lib/eval/backend.h"

#include <fmt/format.h>

#include "lib/core/error.h"
#include "lib/core/log.h"
#include "lib/core/memory.h"
#include "lib/core/text.h"
#include "lib/eval/backend_cpu.h"

namespace s2o {
namespace {

constexpr const char* kNoCuda = "this build has no CUDA kernels (configure with -DS2O_CUDA=ON)";

}  // namespace

std::unique_ptr<Backend> make_backend(const DeviceChoice& device) {
  switch (device.kind) {
    case DeviceKind::kCuda:
      throw UnsupportedError(fmt::format("device {}: {}", device_text(device), kNoCuda));
    case DeviceKind::kAuto:
      log_info("device auto: cpu, because {}", kNoCuda);
      break;
    case DeviceKind::kCpu:
      break;
  }
  return make_cpu_backend();
}

std::vector<BackendItem> list_kernels() {
  return {
      {.name = "attention_ref", .usable = true, .detail = "attention on the CPU (Eigen, fp32)"}};
}

std::vector<BackendItem> list_devices() {
  const std::string memory =
      bytes_text(static_cast<double>(available_memory_bytes())) + " of memory free";
  return {{.name = "cpu", .usable = true, .detail = cpu_description() + ", " + memory},
          {.name = "cuda", .usable = false, .detail = kNoCuda}};
}

}  // namespace s2o
