// Where attention runs. The evaluator plans, runs and measures through this interface alone.
#pragma once

#include <cstdint>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "kernels/attention/quantise_rule.h"
#include "kernels/error_sum/error_sum.h"
#include "lib/config/run_config.h"
#include "lib/input/attention_input.h"
#include "lib/methods/method.h"
#include "lib/plan/sparse_plan.h"

namespace s2o {

// What one plan did. Buffers are reused from cell to cell.
struct AttentionRun {
  std::vector<float> lse;            // [num_q_heads, seqlen]
  std::vector<TileStats> stats;      // [num_passes, num_plan_heads, num_q_tiles]
  std::vector<double> attention_ms;  // one per repeat
  std::vector<double> quantise_ms;   // one per repeat of run(), where that quantised; plan_ms of
                                     // plan_and_run() includes it
  std::int64_t workspace_bytes = 0;  // beyond q, k, v, out and lse
};

// A plan made where it runs.
struct DevicePlanning {
  SparsePlan plan;              // fetched afterwards; token lists only if they were asked for
  std::vector<double> plan_ms;  // one per repeat
  PlanningCost cost;
};

// Outputs stay where they were computed; what leaves the backend are sums over them, unless asked.
class Backend {
 public:
  virtual ~Backend() = default;
  virtual std::string name() const = 0;    // "cpu", "cuda"
  virtual std::string kernel() const = 0;  // "attention_ref"
  virtual DeviceChoice device() const = 0;
  // The context fields device, driver, cuda and sm_clock_mhz; null where they mean nothing.
  virtual nlohmann::ordered_json context() = 0;
  // Why this process can use the device no more, "" while it can: a kernel that faulted ends it for
  // the process that ran it, and a device may go away. Waits for the device. After a failure,
  // nothing else may be asked of a backend that is lost.
  virtual std::string lost() { return ""; }
  // Whole outputs that it holds in host memory at a time.
  virtual int outputs_on_host() const = 0;

  // The input of the runs that follow; it must stay alive until the next call.
  virtual void set_input(const AttentionInput& input) = 0;
  // From here on run() and plan_and_run() work on these heads of the input alone, and what they
  // return is of these heads. Outputs of several such runs make one, which error_sums() and out()
  // then see; none: all heads at once again.
  virtual void set_heads(const std::optional<HeadRange>& q_heads) = 0;
  // Dense attention of the input, which plans and errors refer to from now on: out and lse in fp32
  // accuracy, whatever the accuracy of run(). Times are those of run(plan).
  virtual void run_reference(const SparsePlan& plan, const TimingConfig& timing,
                             AttentionRun& result) = 0;
  virtual const DenseReference& reference() const = 0;
  // How the runs that follow compute: in 8 bits, or as the inputs are stored. UnsupportedError
  // where the kernel cannot.
  virtual void set_compute(const std::optional<QuantiseRule>& rule) = 0;
  // Runs the plan as often as `timing` says. Before each run, out and lse hold NaN everywhere, so
  // that a row that the kernel forgets cannot pass for a result.
  virtual void run(const SparsePlan& plan, const TimingConfig& timing, AttentionRun& result) = 0;
  // As run, with a plan that the method makes on the device, timed apart; nothing, and nothing is
  // run, when this backend or the method with these settings cannot. `fetch_tokens` asks for the
  // lists of gathered tokens, which only a check of the plan needs; `head_params` as in
  // PlanContext.
  virtual std::optional<DevicePlanning> plan_and_run(const Method& /*method*/,
                                                     const ParamSet& /*params*/,
                                                     std::span<const ParamSet> /*head_params*/,
                                                     const TimingConfig& /*timing*/,
                                                     bool /*fetch_tokens*/,
                                                     AttentionRun& /*result*/) {
    return std::nullopt;
  }
  // The output of the last run, or of run_reference, against the reference; [num_q_heads].
  virtual std::vector<ErrorSums> error_sums() = 0;
  // That output, on the host; valid until the next run. [num_q_heads, seqlen, head_dim]
  virtual const std::vector<float>& out() = 0;
};

// The device that a kernel needs, where `device` leaves it open. ConfigError when they contradict.
DeviceChoice resolve_device(const DeviceChoice& device, const std::string& kernel);

// `auto` is CUDA if this build has kernels that run here, else the CPU; the log says which.
// `kernel` is a choice of parse_kernel. UnsupportedError when a CUDA device or kernel is asked for
// and cannot be used, ConfigError when device and kernel contradict each other.
std::unique_ptr<Backend> make_backend(const DeviceChoice& device,
                                      const std::string& kernel = "auto");

// One line of `s2o list kernels` or `s2o list devices`.
struct BackendItem {
  std::string name;     // "attention_ref", "cpu"
  bool usable = false;  // on this machine, by this build
  std::string detail;   // what it is, or why it cannot be used
};
std::vector<BackendItem> list_kernels();
std::vector<BackendItem> list_devices();

}  // namespace s2o
