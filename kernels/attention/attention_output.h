// Where attention writes on a device, and buffers for it. CUDA builds only.
#pragma once

#include <cstdint>
#include <vector>

#include "kernels/common/cuda_stream.h"
#include "kernels/common/device_buffer.h"
#include "kernels/common/dtype.h"
#include "kernels/common/plan_view.h"
#include "kernels/common/problem.h"

namespace s2o {

// Device pointers into memory of whoever runs attention. One of the two outputs is null.
struct AttentionOutput {
  float* out_fp32 = nullptr;        // [num_q_heads, seqlen, head_dim]: for errors
  std::uint16_t* out_16 = nullptr;  // [num_q_heads, seqlen, head_dim]: what a model would store
  float* lse = nullptr;             // [num_q_heads, seqlen]
  TileStats* stats = nullptr;       // [num_passes, num_plan_heads, num_q_tiles]
  // Scales of quantised input, to be checked later (num_head_scales() in quantised_input.h); null:
  // they lie in scratch.
  float* head_scales = nullptr;
};

enum class OutputType : std::uint8_t {
  kFp32,   // full precision of the accumulators
  kInput,  // the type of q
};

// An output of its own memory, and how to read it.
class AttentionBuffers {
 public:
  // For plans with this header. UnsupportedError with bytes needed and free.
  AttentionBuffers(const Problem& problem, const PlanView& header, OutputType type);

  // Valid as long as this object.
  AttentionOutput output();
  // Fills out and lse with NaN, in the stream.
  void poison(CudaStream stream);

  // What runs left, on the host; whoever reads has waited for them. A 16-bit output of `dtype` is
  // converted.
  std::vector<float> read_out(KernelDType dtype) const;
  std::vector<float> read_lse() const;
  std::vector<TileStats> read_stats() const;

 private:
  DeviceBuffer<float> out_fp32_;
  DeviceBuffer<std::uint16_t> out_16_;
  DeviceBuffer<float> lse_;
  DeviceBuffer<TileStats> stats_;
};

}  // namespace s2o
