// The context fields of results that were computed on a CUDA device. CUDA builds only.
#pragma once

#include <nlohmann/json.hpp>

#include "kernels/attention/attention_cuda.h"

namespace s2o {

// device, driver, cuda and sm_clock_mhz. Keeps the device busy for some 50 ms: an idle one clocks
// down.
nlohmann::ordered_json device_context(CudaAttention& attention, int device_index);

}  // namespace s2o
