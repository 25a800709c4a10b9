#include <cuda_runtime.h>

#include "kernels/common/cuda_check.h"
#include "lib/eval/device_context.h"

namespace s2o {

nlohmann::ordered_json device_context(CudaAttention& attention, int device_index) {
  const CudaStatus status = query_cuda();
  constexpr int kFlushes = 1000;  // some 50 ms
  for (int i = 0; i < kFlushes; ++i) attention.flush_l2();
  const double clock_mhz = multiprocessor_clock_mhz(device_index);
  cuda_check(cudaDeviceSynchronize(), "wait for the device");
  nlohmann::ordered_json context = {{"device", attention.device().name},
                                    {"driver", status.driver_version},
                                    {"cuda", status.runtime_version},
                                    {"sm_clock_mhz", nullptr}};
  if (clock_mhz > 0.0) context["sm_clock_mhz"] = clock_mhz;
  return context;
}

}  // namespace s2o
