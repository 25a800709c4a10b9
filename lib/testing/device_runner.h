// Runs plans on the first CUDA device. Tests only, CUDA builds only.
#pragma once

#include <optional>
#include <string>

#include "kernels/attention/attention_output.h"
#include "kernels/attention/quantise_rule.h"
#include "kernels/testing/row_reference.h"
#include "lib/device/cuda_device.h"
#include "lib/testing/compare.h"

namespace s2o::testing {

// "" if kernel `variant` ("sm80", "sm90") runs on device 0, else why not.
std::string device_refusal(const std::string& variant);
// Device 0 with the kernels of a variant.
const CudaDevice& device_with(const std::string& variant);

// An input in 16 bits, as kernels read it.
struct DeviceInputs {
  explicit DeviceInputs(const AttentionInput& input);
  const RowInputs& rows() const { return rows_; }
  KernelDType dtype() const { return rows_.dtype; }

 private:
  std::vector<std::uint16_t> q_, k_, v_;
  RowInputs rows_;
};

struct DeviceRunOptions {
  OutputType output = OutputType::kFp32;
  bool fp32_accuracy = false;
  std::optional<QuantiseRule> quantise = {};
};
// Copies input and plan, poisons the outputs, quantises, runs, reads.
KernelResult run_on_device(const CudaDevice& device, const AttentionInput& input,
                           const SparsePlan& plan, const DeviceRunOptions& options = {});

}  // namespace s2o::testing
