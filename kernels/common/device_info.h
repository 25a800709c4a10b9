// What CUDA devices this machine has. Host-safe; the queries exist in CUDA builds only
// (S2O_HAS_CUDA).
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace s2o {

struct DeviceInfo {
  int index = 0;
  std::string name;
  int compute_capability = 0;  // 80 for 8.0, 90 for 9.0
  int num_multiprocessors = 0;
  std::int64_t shared_bytes_per_block = 0;  // largest that a kernel may ask for
  std::int64_t l2_bytes = 0;
  std::int64_t total_bytes = 0;
};

struct CudaStatus {
  // Why CUDA cannot be used, "" if it can: "no CUDA driver", "driver 12.4 is older than this
  // build's runtime 13.0", "no CUDA device".
  std::string problem;
  std::string driver_version;   // "13.0", "" without a driver
  std::string runtime_version;  // "13.0"
  std::vector<DeviceInfo> devices;
};

// Never throws for a machine without a device: `problem` says it.
CudaStatus query_cuda();
// Bytes free on the current device.
std::int64_t free_device_bytes();
// Current clock of the multiprocessors, MHz; 0 where the management library cannot be asked.
double multiprocessor_clock_mhz(int device_index);

}  // namespace s2o
