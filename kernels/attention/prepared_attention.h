// Attention over one plan on a CUDA device, ready to be enqueued. CUDA builds only.
//
// Plans are executed exactly as kernels/common/plan_view.h states. Everything that can be refused
// is refused here, on the host; enqueueing neither allocates nor waits, so that it can follow a
// planner that still fills the plan's arrays, or a kernel of the caller that still writes Q, K and
// V.
#pragma once

#include <cstdint>
#include <optional>

#include "kernels/attention/attention_output.h"
#include "kernels/attention/kernel_choice.h"
#include "kernels/attention/maps_sm90.h"
#include "kernels/attention/quantised_input.h"
#include "kernels/common/cuda_stream.h"
#include "kernels/common/device_buffer.h"
#include "kernels/common/device_info.h"
#include "kernels/common/device_input.h"
#include "kernels/common/device_plan.h"

namespace s2o {

// Memory that runs of one stream share; what it holds means nothing between them. Grows only, when
// attention is prepared.
struct AttentionScratch {
  DeviceBuffer<std::int32_t> next_tile;  // one counter a batch and pass
  DeviceBuffer<float> state;             // output between launches, where that is not fp32
  DeviceBuffer<float> sums;              // block sums of folded columns
  DeviceBuffer<std::uint16_t> columns;   // and the columns of whole blocks
  DeviceBuffer<std::uint8_t> quantised;  // Q, K and V in 8 bits
};

// check_head_scales (quantised_input.h) of scales on the device (AttentionOutput::head_scales),
// which has run.
void download_and_check_head_scales(const Problem& problem, const float* scales);

class PreparedAttention {
 public:
  // Input, plan, output and scratch stay alive, and the caller's, for as long as this is used; the
  // arrays may be filled later. `fp32_accuracy` takes P in three 16-bit terms, by the sm80 kernel,
  // and needs block_m and block_n 64; `quantise` takes Q, K and V in 8 bits. UnsupportedError
  // naming the value found and those supported, Error for a plan of another problem.
  PreparedAttention(const DeviceInfo& device, AttentionKernel kernel, const DeviceInput& input,
                    const DevicePlan& plan, const AttentionOutput& output,
                    AttentionScratch& scratch, bool fp32_accuracy = false,
                    std::optional<QuantiseRule> quantise = {});

  int num_batches() const { return plan_.num_batches(); }
  // What every run must begin with, before the first batch: quantises Q, K and V if that was asked
  // for. Counts as planning.
  void enqueue_quantise(CudaStream stream) const;
  // download_and_check_head_scales() of what has run; nothing where nothing is quantised.
  void check_quantised() const;
  // All passes of the plan. Error for a plan in several batches, of which only one is in memory.
  void enqueue(CudaStream stream) const;
  // The tiles of one batch (device_plan.h).
  void enqueue_batch(int batch, CudaStream stream) const;

  // Device bytes beyond q, k, v, out, lse and the plan: counters, statistics, state and sums.
  std::int64_t workspace_bytes() const { return workspace_bytes_; }

 private:
  bool wide_values() const { return quantised_.v_rows != nullptr; }
  bool folds() const { return plan_.header.fold.kind != Compensation::kNone; }
  void reserve_scratch();
  void make_maps(KernelDType dtype);
  void launch_pass(const AttentionKernelArgs& args, CudaStream stream) const;
  void launch_fold(const AttentionKernelArgs& args, int num_sets, CudaStream stream) const;

  AttentionKernel kernel_;
  int num_multiprocessors_;
  DeviceInput input_;
  DevicePlan plan_;
  AttentionOutput output_;
  AttentionScratch& scratch_;
  TileShape tile_;
  device::AttentionMaps maps_{};  // for the sm90 kernel
  std::optional<QuantiseRule> quantise_;
  QuantisedInput quantised_;
  std::int64_t workspace_bytes_ = 0;
};

}  // namespace s2o
