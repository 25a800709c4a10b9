#include "lib/ranks/rank_device.h"

#include <fmt/format.h>
#include <sched.h>
#include <unistd.h>

#include <algorithm>

#include "lib/core/error.h"
#include "lib/core/log.h"
#include "lib/eval/backend.h"
#include "lib/eval/backend_cuda.h"
#if defined(S2O_HAS_CUDA)
#include "kernels/common/device_identity.h"
#include "kernels/common/device_info.h"
#endif

namespace s2o {
namespace {

#if defined(S2O_HAS_CUDA)
int count_devices() { return static_cast<int>(query_cuda().devices.size()); }
std::string identity_of(int index) { return device_identity(index); }
std::string name_of(int index) {
  return query_cuda().devices.at(static_cast<std::size_t>(index)).name;
}
#else
int count_devices() { return 0; }
std::string identity_of(int) { return ""; }
std::string name_of(int) { return ""; }
#endif

}  // namespace

DeviceChoice choose_rank_device(const DeviceChoice& device, const std::string& kernel,
                                int local_rank, int gpus) {
  const DeviceChoice resolved = resolve_device(device, kernel);
  if (resolved.kind == DeviceKind::kCpu) return resolved;
  if (resolved.kind == DeviceKind::kAuto && !cuda_refusal().empty()) {
    log_info("device auto: cpu, because {}", cuda_refusal());
    return {.kind = DeviceKind::kCpu};
  }
  if (resolved.index != 0) {
    throw ConfigError(fmt::format(
        "device {}: each rank takes the GPUs of its place on its host; name the device cuda",
        device_text(resolved)));
  }
  const int count = count_devices();
  if (count > 0 && gpus > count) {
    throw UnsupportedError(
        fmt::format("parallel {}: this machine has {} CUDA device(s)", gpus, count));
  }
  const int groups = std::max(count / gpus, 1);
  // More ranks than GPUs: rank 0 finds out, because a rank may see its own GPU alone.
  return {.kind = DeviceKind::kCuda, .index = local_rank % groups * gpus};
}

std::string rank_device_text(const DeviceChoice& device, int gpus) {
  if (device.kind != DeviceKind::kCuda) return "cpu";
  const std::string name = name_of(device.index);
  if (gpus == 1) return fmt::format("cuda:{} {}", device.index, name);
  return fmt::format("cuda:{}-{} {}", device.index, device.index + gpus - 1, name);
}

std::vector<std::string> rank_device_ids(const DeviceChoice& device, int gpus) {
  std::vector<std::string> ids;
  if (device.kind != DeviceKind::kCuda) return ids;
  for (int i = 0; i < gpus; ++i) ids.push_back(identity_of(device.index + i));
  return ids;
}

void warn_about_binding() {
  cpu_set_t allowed;
  CPU_ZERO(&allowed);
  if (::sched_getaffinity(0, sizeof(allowed), &allowed) != 0) return;
  const long cores = ::sysconf(_SC_NPROCESSORS_ONLN);
  if (CPU_COUNT(&allowed) > 1 || cores < 4) return;
  log_warning(
      "the launcher left one of {} cores to this rank; mpirun --bind-to none, or "
      "srun --cpus-per-task, gives it more",
      cores);
}

}  // namespace s2o
