// Exact attention of some rows of each layer, beside a run. CUDA builds only.
#pragma once

#include <cstdint>
#include <vector>

#include "kernels/common/cuda_stream.h"
#include "kernels/common/device_buffer.h"
#include "kernels/row_check/row_check.h"
#include "lib/device/phase_timer.h"
#include "lib/prefill/prefill_backend.h"

namespace s2o {

class RowChecks {
 public:
  // As many rows as `wanted` asks for, which outlives this.
  RowChecks(CudaStream stream, const Problem& problem, const PrefillWanted& wanted);

  // Of the attention output `out`; waits. [num_q_heads, rows]
  std::vector<RowError> run(int layer, const DeviceInput& input, const std::uint16_t* out);
  double total_ms() const { return total_ms_; }

 private:
  std::vector<std::int64_t> rows_of(int layer) const;

  const CudaStream stream_;
  const Problem problem_;
  const PrefillWanted& wanted_;
  PhaseTimer timer_;
  double total_ms_ = 0.0;
  DeviceBuffer<std::int64_t> rows_;
  DeviceBuffer<float> partial_;
  DeviceBuffer<RowError> errors_;
};

}  // namespace s2o
