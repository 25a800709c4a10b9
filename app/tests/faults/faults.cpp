#include "app/tests/faults/faults.h"

#include <cstdlib>
#include <vector>

#include "lib/core/error.h"

#ifdef S2O_HAS_CUDA
#include "kernels/common/current_device.h"
#include "kernels/common/device_buffer.h"
#include "kernels/testing/device_fault.h"
#endif

namespace s2o::testing {
namespace {

constexpr const char* kVariable = "S2O_TEST_FAULTS";
constexpr const char* kGone = "gone";  // what stays in the variable of a device that went away

std::string pending_faults() {
  const char* text = std::getenv(kVariable);
  return text == nullptr ? "" : text;
}

#ifdef S2O_HAS_CUDA
// Takes all of the current device's memory, down to the least that it hands out.
std::vector<DeviceBytes> all_memory() {
  std::vector<DeviceBytes> taken;
  for (std::size_t bytes = std::size_t{1} << 38; bytes >= std::size_t{1} << 16;) {
    try {
      DeviceBytes part;
      part.reserve(bytes, "test");
      taken.push_back(std::move(part));
    } catch (const UnsupportedError&) {
      bytes /= 2;
    }
  }
  return taken;
}

void call_without_memory(int device, const std::function<void()>& call) {
  std::vector<DeviceBytes> taken;
  {
    const CurrentDevice current(device);
    taken = all_memory();
  }
  call();
}
void fault_kernel(int device) { launch_failing_kernel(device); }
#else
void call_without_memory(int, const std::function<void()>&) {
  throw Error("this build has no CUDA device");
}
void fault_kernel(int) {}
#endif

}  // namespace

Faults::Faults(int cuda_device) : cuda_device_(cuda_device) {
  if (pending_faults() == kGone) throw UnsupportedError("device cpu: is gone (simulated)");
}

void Faults::at_call(const std::string& device, const std::function<void()>& call) {
  ++calls_;
  const std::string pending = pending_faults();
  const std::string first = pending.substr(0, pending.find(','));
  const std::size_t at = first.find('@');
  if (at == std::string::npos || std::stoi(first.substr(at + 1)) != calls_) {
    call();
    return;
  }
  const std::string rest = first == pending ? "" : pending.substr(first.size() + 1);
  setenv(kVariable, rest.c_str(), 1);
  const std::string kind = first.substr(0, at);
  const bool is_cuda = device == "cuda";
  if (kind == "memory") {
    if (is_cuda) {
      call_without_memory(cuda_device_, call);
      return;
    }
    throw UnsupportedError("needs 2 bytes of device memory, 1 of 1 are free (simulated)");
  }
  if (kind == "device") {
    if (is_cuda) {
      setenv("CUDA_VISIBLE_DEVICES", "", 1);
    } else {
      setenv(kVariable, kGone, 1);
    }
  }
  if (kind == "amid") {
    is_due_ = true;
    call();
    return;
  }
  fault(device);
  call();
}

void Faults::at_progress(const std::string& device) {
  if (!is_due_) return;
  is_due_ = false;
  fault(device);
}

void Faults::fault(const std::string& device) {
  if (device == "cuda") {
    fault_kernel(cuda_device_);
    return;
  }
  lost_ = "device cpu is lost to this process: a kernel faulted (simulated)";
  throw CudaError("a kernel faulted (simulated)");
}

}  // namespace s2o::testing
