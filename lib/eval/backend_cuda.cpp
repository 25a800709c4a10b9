#include "lib/eval/backend_cuda.h"

#include <cuda_runtime.h>
#include <fmt/format.h>

#include <algorithm>
#include <optional>

#include "kernels/attention/prepared_attention.h"
#include "kernels/common/device_input_copy.h"
#include "kernels/common/device_plan_copy.h"
#include "kernels/common/kernel_registry.h"
#include "kernels/common/parallel.h"
#include "kernels/common/stream.h"
#include "kernels/error_sum/error_reference.h"
#include "lib/core/error.h"
#include "lib/core/log.h"
#include "lib/core/text.h"
#include "lib/device/cuda_device.h"
#include "lib/device/l2_flush.h"
#include "lib/device/phase_timer.h"
#include "lib/device/planned_attention.h"
#include "lib/device/planned_method.h"
#include "lib/input/storage_bits.h"

namespace s2o {
namespace {

// Tiles of the fp32-accurate kernel instance.
constexpr int kAccurateTile = 64;

// All that lives on the device.
struct OnDevice {
  explicit OnDevice(const CudaDevice& cuda)
      : device(cuda), timer(stream.get()), l2_flush(cuda.info) {}

  CudaDevice device;
  Stream stream;
  PhaseTimer timer;
  L2Flush l2_flush;
  AttentionScratch scratch;
  std::optional<DeviceInputCopy> input;
  std::optional<ErrorReference> reference;  // of the input
  std::optional<AttentionBuffers> buffers;  // of the last run
};

DeviceInputCopy input_on_device(const AttentionInput& input) {
  const KernelDType dtype =
      input.dtype == StorageDType::kBF16 ? KernelDType::kBf16 : KernelDType::kFp16;
  return {input.problem, dtype, to_16_bit(input.q, input.dtype).data(),
          to_16_bit(input.k, input.dtype).data(), to_16_bit(input.v, input.dtype).data()};
}

class CudaBackend final : public Backend {
 public:
  CudaBackend(int device_index, const std::string& variant)
      : device_index_(device_index), on_(open_cuda_device(device_index, variant)) {
    info_ = on_.device.info;
    kernel_ = attention_kernel_name(on_.device.attention);
  }

  std::string name() const override { return "cuda"; }
  std::string kernel() const override { return kernel_; }
  DeviceChoice device() const override {
    return {.kind = DeviceKind::kCuda, .index = device_index_};
  }

  nlohmann::ordered_json context() override { return device_context(on_.device); }
  std::string lost() override {
    if (lost_.empty()) lost_ = lost_device(device_index_);
    return lost_;
  }

  int outputs_on_host() const override { return 0; }

  void set_input(const AttentionInput& input) override {
    input_ = nullptr;
    set_heads(std::nullopt);
    quantise_.reset();
    reference_ = {};
    if (input.dtype == StorageDType::kF32) {
      throw UnsupportedError(
          fmt::format("{}: dtype is fp32, supported are bf16 and fp16; fp32 runs on the CPU "
                      "(--device cpu)",
                      kernel_));
    }
    upload(input);
    input_ = &input;
    kernel_ =
        attention_kernel_name(kernel_with_head_dim(on_.device.attention, input.problem.head_dim));
  }

  void set_heads(const std::optional<HeadRange>& q_heads) override {
    if (q_heads && !heads_) {
      const Problem& problem = input_->problem;
      gathered_.resize(static_cast<std::size_t>(problem.row_offset(problem.num_q_heads, 0)),
                       "output of all heads");
    }
    if (!q_heads) gathered_ = {};
    heads_ = q_heads;
  }

  void run_reference(const SparsePlan& plan, const TimingConfig& timing,
                     AttentionRun& result) override {
    execute(plan, timing, result);
    compute_reference();
    result.lse = reference_.lse;
  }
  const DenseReference& reference() const override { return reference_; }

  void set_compute(const std::optional<QuantiseRule>& rule) override { quantise_ = rule; }

  void run(const SparsePlan& plan, const TimingConfig& timing, AttentionRun& result) override {
    execute(plan, timing, result);
  }

  std::optional<DevicePlanning> plan_and_run(const Method& method, const ParamSet& params,
                                             std::span<const ParamSet> head_params,
                                             const TimingConfig& timing, bool fetch_tokens,
                                             AttentionRun& result) override {
    if (!plans_on_device(input_->problem)) return std::nullopt;
    std::unique_ptr<Planner> planner =
        method.device_planner({.problem = device_input().problem,
                               .dtype = input_->dtype,
                               .params = params,
                               .limits = {.l2_bytes = info_.l2_bytes},
                               .head_params = head_params});
    if (planner == nullptr) return std::nullopt;
    DevicePlanner on_device(std::move(planner));
    return execute_planned(on_device, timing, fetch_tokens, result);
  }

  std::vector<ErrorSums> error_sums() override {
    if (!on_.reference || !on_.buffers) throw Error("error sums: no reference or no run yet");
    return on_.reference->error_sums(heads_ ? gathered_.data() : on_.buffers->output().out_fp32,
                                     on_.stream.get());
  }

  const std::vector<float>& out() override {
    if (!on_.buffers) throw Error("output: no run yet");
    if (heads_) {
      out_.resize(gathered_.size());
      gathered_.download(out_.data(), "download of outputs");
    } else {
      out_ = on_.buffers->read_out(on_.input->input().dtype);
    }
    return out_;
  }

 private:
  void upload(const AttentionInput& input) {
    on_.buffers.reset();
    on_.reference.reset();
    on_.input.reset();
    on_.input.emplace(input_on_device(input));
  }

  // Of the heads at hand.
  DeviceInput device_input() const {
    const DeviceInput& input = on_.input->input();
    return heads_ ? head_slice(input, *heads_) : input;
  }
  void gather_heads() {
    if (!heads_) return;
    const Problem problem = device_input().problem;
    cuda_check(
        cudaMemcpyAsync(
            gathered_.data() + problem.row_offset(heads_->first, 0), on_.buffers->output().out_fp32,
            static_cast<std::size_t>(problem.row_offset(heads_->count, 0)) * sizeof(float),
            cudaMemcpyDeviceToDevice, on_.stream.get()),
        "output of heads");
    on_.stream.synchronize();
  }

  // Buffers for the plan and what enqueues it.
  PreparedAttention prepare(const DevicePlan& plan, bool fp32_accuracy = false) {
    const DeviceInput input = device_input();
    on_.buffers.emplace(input.problem, plan.header, OutputType::kFp32);
    return {on_.device.info,
            on_.device.attention,
            input,
            plan,
            on_.buffers->output(),
            on_.scratch,
            fp32_accuracy,
            fp32_accuracy ? std::nullopt : quantise_};
  }
  DevicePlanCopy plan_on_device(const SparsePlan& plan) const {
    return {device_input().problem, PlanPointers(plan).view(), info_.l2_bytes};
  }

  void compute_reference() {
    const Problem& problem = input_->problem;
    const DevicePlanCopy plan = plan_on_device(dense_plan(problem, kAccurateTile, kAccurateTile));
    const PreparedAttention attention = prepare(plan.plan(), /*fp32_accuracy=*/true);
    on_.buffers->poison(on_.stream.get());
    attention.enqueue(on_.stream.get());
    on_.reference.emplace(problem.num_q_heads, problem.seqlen * problem.head_dim,
                          on_.buffers->output().out_fp32, on_.stream.get());
    on_.stream.synchronize();
    reference_.lse = on_.buffers->read_lse();
  }

  // Before each run that counts: outputs hold NaN, and the cache nothing of use.
  void start_cold() {
    throw_if_cancelled();
    on_.buffers->poison(on_.stream.get());
    on_.stream.synchronize();
    on_.l2_flush.enqueue(on_.stream.get());
  }

  void execute(const SparsePlan& plan, const TimingConfig& timing, AttentionRun& result) {
    const DevicePlanCopy copy = plan_on_device(plan);
    const PreparedAttention attention = prepare(copy.plan());
    const auto run = [&] {
      on_.timer.begin(Phase::kPlanning);
      attention.enqueue_quantise(on_.stream.get());
      on_.timer.enter(Phase::kAttention);
      attention.enqueue(on_.stream.get());
      on_.timer.end();
      on_.stream.synchronize();
      attention.check_quantised();
    };
    for (int i = 0; i < timing.warmup; ++i) run();
    result.attention_ms.clear();
    result.quantise_ms.clear();
    for (int i = 0; i < timing.repeats; ++i) {
      start_cold();
      run();
      result.attention_ms.push_back(on_.timer.milliseconds(Phase::kAttention));
      if (quantise_) result.quantise_ms.push_back(on_.timer.milliseconds(Phase::kPlanning));
    }
    result.lse = on_.buffers->read_lse();
    result.stats = on_.buffers->read_stats();
    result.workspace_bytes = attention.workspace_bytes() + copy.bytes();
    gather_heads();
  }

  // Planning starts with a cold cache; attention finds what planning left there, as in a model, and
  // nothing waits between them.
  DevicePlanning execute_planned(DevicePlanner& planner, const TimingConfig& timing,
                                 bool fetch_tokens, AttentionRun& result) {
    planner.prepare();
    const PreparedAttention attention = prepare(planner.device_plan());
    const DeviceInput input = device_input();
    const PlanningVariant variant = on_.device.planning;
    const auto plan_and_run = [&] {
      on_.timer.begin(Phase::kPlanning);
      enqueue_planned(planner, variant, input, attention, on_.stream.get(), on_.timer);
      on_.timer.end();
      on_.stream.synchronize();
      planner.check();
      attention.check_quantised();
    };
    for (int i = 0; i < timing.warmup; ++i) plan_and_run();
    std::vector<double> plan_ms;
    result.attention_ms.clear();
    for (int i = 0; i < timing.repeats; ++i) {
      start_cold();
      plan_and_run();
      plan_ms.push_back(on_.timer.milliseconds(Phase::kPlanning));
      result.attention_ms.push_back(on_.timer.milliseconds(Phase::kAttention));
    }
    result.lse = on_.buffers->read_lse();
    result.stats = on_.buffers->read_stats();
    result.workspace_bytes = attention.workspace_bytes() + planner.workspace_bytes();
    gather_heads();
    return {
        .plan = fetch_device_plan(
            planner, variant, input,
            fetch_tokens ? FetchedArrays::kAll : FetchedArrays::kWithoutTokens, on_.stream.get()),
        .plan_ms = std::move(plan_ms),
        .cost = planner.cost()};
  }

  const int device_index_;
  OnDevice on_;
  DeviceInfo info_;
  std::string kernel_;
  const AttentionInput* input_ = nullptr;
  std::optional<HeadRange> heads_;
  DeviceBuffer<float> gathered_;  // [num_q_heads, seqlen, head_dim] of runs of some heads each
  DenseReference reference_;      // without `out`, which stays on the device
  std::optional<QuantiseRule> quantise_;  // of the runs of the input
  std::vector<float> out_;                // [num_q_heads, seqlen, head_dim], filled when asked for
  std::string lost_;
};

std::string text_of(const DeviceInfo& device) {
  return fmt::format("{}, compute capability {}.{}, {} multiprocessors, {} of memory", device.name,
                     device.compute_capability / 10, device.compute_capability % 10,
                     device.num_multiprocessors,
                     bytes_text(static_cast<double>(device.total_bytes)));
}

}  // namespace

std::unique_ptr<Backend> make_cuda_backend(int device_index, const std::string& kernel_variant) {
  return std::make_unique<CudaBackend>(device_index, kernel_variant);
}

std::string cuda_refusal() {
  const CudaStatus status = query_cuda();
  if (!status.problem.empty()) return status.problem;
  std::string refusals;
  for (const KernelInfo& kernel : all_kernels()) {
    if (kernel.min_compute_capability == 0) continue;
    const std::string refusal = kernel_refusal(kernel, status.devices[0]);
    if (refusal.empty()) return "";
    refusals += (refusals.empty() ? "" : "; ") + kernel.name + " " + refusal;
  }
  return refusals;
}

std::vector<BackendItem> list_cuda_kernels() {
  const CudaStatus status = query_cuda();
  std::vector<BackendItem> items;
  for (const KernelInfo& kernel : all_kernels()) {
    if (kernel.min_compute_capability == 0) continue;
    const std::string refusal =
        status.problem.empty() ? kernel_refusal(kernel, status.devices[0]) : status.problem;
    items.push_back({.name = kernel.name,
                     .usable = refusal.empty(),
                     .detail = refusal.empty()
                                   ? fmt::format("{}: {}", kernel.element_types, kernel.plan_parts)
                                   : refusal});
  }
  return items;
}

std::vector<BackendItem> list_cuda_devices() {
  const CudaStatus status = query_cuda();
  if (!status.problem.empty()) {
    return {{.name = "cuda", .usable = false, .detail = status.problem}};
  }
  std::vector<BackendItem> items;
  for (const DeviceInfo& device : status.devices) {
    const bool usable = std::any_of(
        all_kernels().begin(), all_kernels().end(), [&device](const KernelInfo& kernel) {
          return kernel.min_compute_capability > 0 && kernel_refusal(kernel, device).empty();
        });
    items.push_back(
        {.name = fmt::format("cuda:{}", device.index),
         .usable = usable,
         .detail = text_of(device) + (usable ? "" : "; no kernel of this build runs on it")});
  }
  return items;
}

}  // namespace s2o
