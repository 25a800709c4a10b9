// A CUDA device, and the kernels that run there. Host-safe header; exists in CUDA builds
// (S2O_HAS_CUDA).
#pragma once

#include <nlohmann/json_fwd.hpp>
#include <string>

#include "kernels/attention/kernel_choice.h"
#include "kernels/common/device_info.h"
#include "lib/planning/planner.h"

namespace s2o {

struct CudaDevice {
  DeviceInfo info;
  AttentionKernel attention = AttentionKernel::kSm80;
  PlanningVariant planning = PlanningVariant::kSm80;
};

// UnsupportedError when CUDA cannot be used here or the device does not exist. Changes nothing.
DeviceInfo require_cuda_device(int device_index);

// Makes the device the current one of this thread. Picks the best kernels of the device, or the
// variant named ("sm80", "sm90"). UnsupportedError when CUDA cannot be used here, the device does
// not exist or the kernels do not run on it.
CudaDevice open_cuda_device(int device_index, const std::string& kernel_variant = "");

// "" while calls on the current device succeed, else what they report: that it is lost to this
// process. Waits for the device.
std::string lost_device(int device_index);

// The context fields device, driver, cuda and sm_clock_mhz of results. Keeps the device busy for
// some 50 ms: an idle one clocks down.
nlohmann::ordered_json device_context(const CudaDevice& device);

}  // namespace s2o
