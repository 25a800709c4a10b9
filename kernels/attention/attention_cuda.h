// Attention over plans on a CUDA device. Host-safe header; exists in CUDA builds (S2O_HAS_CUDA).
//
// Usage: set_input once per layer, set_plan once per plan, then run as often as wanted. Nothing is
// allocated by run. Plans are executed exactly as kernels/common/plan_view.h states.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "kernels/attention/attention_launch.h"
#include "kernels/attention/launch_plan.h"
#include "kernels/common/device_info.h"
#include "kernels/common/plan_view.h"
#include "kernels/common/problem.h"
#include "kernels/error_sum/error_sum.h"
#include "kernels/planning/device_planner.h"

namespace s2o {

enum class OutputType : std::uint8_t {
  kFp32,   // full precision of the accumulators: for errors
  kInput,  // the type of q: what a model would store
};

struct RunOptions {
  OutputType output = OutputType::kFp32;
  bool fp32_accuracy =
      false;  // P in three 16-bit terms, by the sm80 kernel; block_m and block_n 64
};

// Milliseconds on the device, summed over the batches of a plan.
struct PlannedTimes {
  float plan_ms = 0.0f;
  float attention_ms = 0.0f;
};

class CudaAttention {
 public:
  // Picks the best kernels of the device, or the variant named ("sm80", "sm90"), for attention and
  // for planning. UnsupportedError when CUDA cannot be used here, the device does not exist or the
  // kernels do not run on it.
  CudaAttention(int device_index, const std::string& kernel_variant = "");
  ~CudaAttention();
  CudaAttention(const CudaAttention&) = delete;
  CudaAttention& operator=(const CudaAttention&) = delete;

  const DeviceInfo& device() const;
  AttentionKernel kernel() const;
  PlanningVariant planning() const;

  // Copies q [num_q_heads, seqlen, head_dim], k, v [num_kv_heads, seqlen, head_dim] (16-bit values
  // of `dtype`) to the device. UnsupportedError with bytes needed and free.
  void set_input(const Problem& problem, KernelDType dtype, const std::uint16_t* q,
                 const std::uint16_t* k, const std::uint16_t* v);
  // Takes an input that is, or will be when run() gets there, in device memory; it stays the
  // caller's. Shares everything else with set_input.
  void set_device_input(const Problem& problem, KernelDType dtype, const std::uint16_t* q,
                        const std::uint16_t* k, const std::uint16_t* v);
  // Copies a plan over `problem` to the device and picks the kernel instance. `plan` holds host
  // pointers and may be released afterwards. Error naming head, tile and index for a plan that
  // points outside the input.
  void set_plan(const PlanView& plan, const RunOptions& options);

  // Takes a plan whose arrays are, or will be when run() gets there, in device memory; they stay
  // the planner's. Shares everything else with set_plan.
  void set_device_plan(const DevicePlan& plan, const RunOptions& options);

  // What a device planner reads, and the stream in which run() works: planning enqueued there is
  // seen by the next run.
  DeviceInput device_input() const;
  CudaStream stream() const;

  // Enqueues planning in that stream and waits; milliseconds on the device by CUDA events.
  float run_planner(DevicePlanner& planner);
  // Plans and runs, batch by batch where the planner says so, and waits only then. The planner's
  // plan is set.
  PlannedTimes run_planned(DevicePlanner& planner);

  // Fills out and lse with NaN.
  void poison_outputs();
  // Writes a buffer twice as large as the L2 cache, so that the next run starts cold.
  void flush_l2();
  // Runs all passes of the plan and waits; milliseconds on the device by CUDA events. Error for a
  // plan in several batches, of which only one is in memory.
  float run();
  // As run, without waiting.
  void enqueue();
  // The tiles of one batch of a device plan (planner.h), which was planned, or will be when this
  // gets there.
  void enqueue_batch(int batch);
  // Where enqueued runs with OutputType::kInput write, until the next plan is set:
  // [num_q_heads, seqlen, head_dim].
  const std::uint16_t* device_out() const;

  // Results of the last run, on the host. A 16-bit output is converted.
  void read(std::vector<float>& out, std::vector<float>& lse, std::vector<TileStats>& stats) const;
  void read_out(std::vector<float>& out) const;
  void read_rows(std::vector<float>& lse, std::vector<TileStats>& stats) const;
  void read_stats(std::vector<TileStats>& stats) const;

  // Keeps the fp32 output of the last run on the device, until the next set_input.
  void keep_as_reference();
  // The fp32 output of the last run against the one kept, per query head (error_sum.h).
  std::vector<ErrorSums> error_sums();

  // Device bytes beyond q, k, v, out and lse: plan, orders, counters, state between passes, sums.
  std::int64_t workspace_bytes() const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace s2o
