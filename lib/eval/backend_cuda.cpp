#include "lib/eval/backend_cuda.h"

#include <cuda_runtime.h>
#include <fmt/format.h>

#include <algorithm>
#include <optional>

#include "kernels/attention/attention_cuda.h"
#include "kernels/common/cuda_check.h"
#include "kernels/common/kernel_registry.h"
#include "kernels/common/parallel.h"
#include "kernels/planning/device_planner.h"
#include "lib/core/error.h"
#include "lib/core/log.h"
#include "lib/core/text.h"
#include "lib/eval/device_context.h"
#include "lib/input/storage_bits.h"
#include "lib/plan/device_plan.h"

namespace s2o {
namespace {

// Tiles of the fp32-accurate kernel instance.
constexpr int kAccurateTile = 64;

class CudaBackend final : public Backend {
 public:
  CudaBackend(int device_index, const std::string& variant)
      : device_index_(device_index), variant_(variant) {
    attention_.emplace(device_index, variant);
    device_ = attention_->device();
    kernel_ = attention_kernel_name(attention_->kernel());
  }

  std::string name() const override { return "cuda"; }
  std::string kernel() const override { return kernel_; }
  DeviceChoice device() const override {
    return {.kind = DeviceKind::kCuda, .index = device_index_};
  }

  nlohmann::ordered_json context() override {
    nlohmann::ordered_json context;
    guarded([&] { context = device_context(*attention_, device_index_); });
    return context;
  }

  int outputs_on_host() const override { return 0; }

  void set_input(const AttentionInput& input) override {
    input_ = nullptr;
    reference_ = {};
    if (input.dtype == StorageDType::kF32) {
      throw UnsupportedError(
          fmt::format("{}: dtype is fp32, supported are bf16 and fp16; fp32 runs on the CPU "
                      "(--device cpu)",
                      kernel_));
    }
    guarded([&] {
      upload(input);
      input_ = &input;
    });
  }

  void run_reference(const SparsePlan& plan, const TimingConfig& timing,
                     AttentionRun& result) override {
    guarded([&] {
      execute(plan, timing, result);
      compute_reference();
    });
    result.lse = reference_.lse;
  }
  const DenseReference& reference() const override { return reference_; }

  void run(const SparsePlan& plan, const TimingConfig& timing, AttentionRun& result) override {
    guarded([&] { execute(plan, timing, result); });
  }

  std::optional<DevicePlanning> plan_and_run(const Method& method, const ParamSet& params,
                                             const TimingConfig& timing, bool fetch_tokens,
                                             AttentionRun& result) override {
    std::unique_ptr<Planner> planner = method.device_planner({.problem = input_->problem,
                                                              .dtype = input_->dtype,
                                                              .params = params,
                                                              .l2_bytes = device_.l2_bytes});
    if (planner == nullptr) return std::nullopt;
    std::optional<DevicePlanning> planning;
    guarded([&] {
      DevicePlanner on_device(std::move(planner));
      planning.emplace(execute_planned(on_device, timing, fetch_tokens, result));
    });
    return planning;
  }

  std::vector<ErrorSums> error_sums() override {
    std::vector<ErrorSums> sums;
    guarded([&] { sums = attention_->error_sums(); });
    return sums;
  }

  const std::vector<float>& out() override {
    guarded([this] { attention_->read_out(out_); });
    return out_;
  }

 private:
  void upload(const AttentionInput& input) {
    const KernelDType dtype =
        input.dtype == StorageDType::kBF16 ? KernelDType::kBf16 : KernelDType::kFp16;
    const auto q = to_16_bit(input.q, input.dtype);
    const auto k = to_16_bit(input.k, input.dtype);
    const auto v = to_16_bit(input.v, input.dtype);
    attention_->set_input(input.problem, dtype, q.data(), k.data(), v.data());
  }

  void compute_reference() {
    const SparsePlan plan = dense_plan(input_->problem, kAccurateTile, kAccurateTile);
    attention_->set_plan(PlanPointers(plan).view(), {.fp32_accuracy = true});
    attention_->poison_outputs();
    attention_->run();
    attention_->keep_as_reference();
    std::vector<TileStats> stats;
    attention_->read_rows(reference_.lse, stats);
  }

  // A failed kernel leaves the device unusable for this process until it is reset. The cell that it
  // happened in carries the error; the next one starts on a fresh device, or says that there is
  // none.
  template <class Body>
  void guarded(const Body& body) {
    try {
      if (broken_) recover();
      body();
    } catch (const CudaError&) {
      broken_ = true;
      throw;
    }
  }
  void recover() {
    if (!lost_.empty()) throw CudaError(lost_);
    log_warning("resetting CUDA device {} after a failure", device_index_);
    attention_.reset();
    (void)cudaDeviceReset();
    (void)cudaGetLastError();
    try {
      attention_.emplace(device_index_, variant_);
    } catch (const CudaError& error) {
      // Some drivers give a process no second chance.
      lost_ = fmt::format(
          "device cuda:{} is lost to this process after a failed kernel ({}); a new "
          "one with --resume goes on",
          device_index_, error.what());
      throw CudaError(lost_);
    }
    if (input_ != nullptr) {
      upload(*input_);
      if (!reference_.lse.empty()) compute_reference();
    }
    broken_ = false;
  }

  void execute(const SparsePlan& plan, const TimingConfig& timing, AttentionRun& result) {
    attention_->set_plan(PlanPointers(plan).view(), {});
    for (int i = 0; i < timing.warmup; ++i) attention_->run();
    result.attention_ms.clear();
    for (int i = 0; i < timing.repeats; ++i) {
      throw_if_cancelled();
      attention_->poison_outputs();
      attention_->flush_l2();
      result.attention_ms.push_back(static_cast<double>(attention_->run()));
    }
    attention_->read_rows(result.lse, result.stats);
    result.workspace_bytes = attention_->workspace_bytes();
  }

  // Planning starts with a cold cache; attention finds what planning left there, as in a model, and
  // nothing waits between them.
  DevicePlanning execute_planned(DevicePlanner& planner, const TimingConfig& timing,
                                 bool fetch_tokens, AttentionRun& result) {
    planner.prepare();
    attention_->set_device_plan(planner.device_plan(), {});
    for (int i = 0; i < timing.warmup; ++i) {
      attention_->run_planned(planner);
      planner.check();
    }
    std::vector<double> plan_ms;
    result.attention_ms.clear();
    for (int i = 0; i < timing.repeats; ++i) {
      throw_if_cancelled();
      attention_->poison_outputs();
      attention_->flush_l2();
      const PlannedTimes times = attention_->run_planned(planner);
      planner.check();
      plan_ms.push_back(static_cast<double>(times.plan_ms));
      result.attention_ms.push_back(static_cast<double>(times.attention_ms));
    }
    attention_->read_rows(result.lse, result.stats);
    result.workspace_bytes = attention_->workspace_bytes() + planner.workspace_bytes();
    const CopyToHost copy = [](void* target, const void* source, std::size_t bytes) {
      cuda_check(cudaMemcpy(target, source, bytes, cudaMemcpyDeviceToHost), "fetch the plan");
    };
    const PlanBatch replan = [&](int batch) {
      planner.plan_batch(batch, attention_->device_input(), attention_->stream(),
                         attention_->planning());
      cuda_check(cudaStreamSynchronize(attention_->stream()), "plan once more");
    };
    return {.plan = fetch_plan(input_->problem, planner.device_plan(), copy,
                               fetch_tokens ? FetchedArrays::kAll : FetchedArrays::kWithoutTokens,
                               replan),
            .plan_ms = std::move(plan_ms),
            .cost = planner.cost()};
  }

  const int device_index_;
  const std::string variant_;
  std::optional<CudaAttention> attention_;
  DeviceInfo device_;
  std::string kernel_;
  const AttentionInput* input_ = nullptr;
  DenseReference reference_;  // without `out`, which stays on the device
  std::vector<float> out_;    // [num_q_heads, seqlen, head_dim], filled when asked for
  bool broken_ = false;
  std::string lost_;  // why the device cannot be opened again, "" if it may
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
