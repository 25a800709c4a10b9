// Runs plans on the first CUDA device. Tests only, CUDA builds only.
#pragma once

#include <string>

#include "kernels/attention/attention_cuda.h"
#include "kernels/testing/row_reference.h"
#include "lib/testing/compare.h"

namespace s2o::testing {

// "" if kernel `variant` ("sm80", "sm90") runs on device 0, else why not.
std::string device_refusal(const std::string& variant);
// The one instance of a variant in this process.
CudaAttention& device_attention(const std::string& variant);

// An input in 16 bits, as kernels read it.
struct DeviceInputs {
  explicit DeviceInputs(const AttentionInput& input);
  const RowInputs& rows() const { return rows_; }
  KernelDType dtype() const { return rows_.dtype; }

 private:
  std::vector<std::uint16_t> q_, k_, v_;
  RowInputs rows_;
};

// set_input, set_plan, poisoned outputs, run, read.
KernelResult run_on_device(CudaAttention& attention, const AttentionInput& input,
                           const SparsePlan& plan, const RunOptions& options = {});

}  // namespace s2o::testing
