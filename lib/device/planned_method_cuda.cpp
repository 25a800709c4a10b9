#include <cuda_runtime.h>
#include <fmt/format.h>

#include <utility>
#include <vector>

#include "lib/core/error.h"
#include "lib/core/memory.h"
#include "lib/device/planned_attention.h"
#include "lib/device/planned_method.h"
#include "lib/input/storage_bits.h"
#include "lib/methods/setting.h"

namespace s2o {
namespace {

// Tiles of the fp32-accurate kernel instance.
constexpr int kAccurateTile = 64;

void fetch_heads(const void* source, std::size_t count, StorageDType dtype,
                 std::vector<float>& values) {
  std::vector<std::uint16_t> bits(count);
  values.resize(count);
  cuda_check(cudaMemcpy(bits.data(), source, count * sizeof(std::uint16_t), cudaMemcpyDeviceToHost),
             "fetch Q, K and V for planning on the host");
  from_16_bit(bits, dtype, values.data());
}

// What oracles look at.
std::vector<float> dense_lse(const CudaDevice& device, const DeviceInput& input,
                             AttentionScratch& scratch, CudaStream stream) {
  const SparsePlan plan = dense_plan(input.problem, kAccurateTile, kAccurateTile);
  const DevicePlanCopy copy(input.problem, PlanPointers(plan).view(), device.info.l2_bytes);
  AttentionBuffers buffers(input.problem, copy.plan().header, OutputType::kFp32);
  PreparedAttention(device.info, device.attention, input, copy.plan(), buffers.output(), scratch,
                    /*fp32_accuracy=*/true)
      .enqueue(stream);
  cuda_check(cudaStreamSynchronize(stream), "dense attention for an oracle");
  return buffers.read_lse();
}

}  // namespace

DeviceInput head_slice(const DeviceInput& input, const HeadRange& q_heads) {
  DeviceInput slice = input;
  slice.problem = head_slice(input.problem, q_heads);
  const auto at = [&input](const void* heads, int head) {
    return static_cast<const std::uint16_t*>(heads) + input.problem.row_offset(head, 0);
  };
  slice.q = at(input.q, q_heads.first);
  const int kv_head = first_kv_head(input.problem, q_heads);
  slice.k = at(input.k, kv_head);
  slice.v = at(input.v, kv_head);
  return slice;
}

PlannedMethod::PlannedMethod(const CudaDevice& device, const Problem& problem, StorageDType dtype,
                             const Method& method, const ParamSet& params,
                             const PlannerLimits& limits, const std::vector<ParamSet>& head_params,
                             bool owns_scratch)
    : device_(device),
      problem_(problem),
      dtype_(dtype),
      method_(method),
      params_(params),
      head_params_(head_params),
      owns_scratch_(owns_scratch) {
  std::unique_ptr<Planner> planner;
  if (plans_on_device(problem)) {
    planner = method.device_planner({.problem = problem,
                                     .dtype = dtype,
                                     .params = params_,
                                     .limits = limits,
                                     .head_params = head_params_});
  }
  if (planner != nullptr) {
    planner_ = std::make_unique<DevicePlanner>(std::move(planner));
    planner_->prepare(owns_scratch_);
  } else if (!method.info().reads_input) {
    AttentionInput shape_only;
    shape_only.problem = problem;
    shape_only.dtype = dtype;
    const DenseReference none;
    host_plan_.emplace(method.plan_cpu({shape_only, none, head_params_}, params_));
    copied_.emplace(problem, PlanPointers(*host_plan_).view(), device.info.l2_bytes);
  }
}
PlannedMethod::~PlannedMethod() = default;

bool PlannedMethod::quantises() const { return quantise_rule(params_).has_value(); }

const char* PlannedMethod::planner() const {
  if (planner_ != nullptr) return "cuda";
  return method_.info().reads_input ? "cpu" : "none";
}

DevicePlan PlannedMethod::device_plan() const {
  if (planner_ != nullptr) return planner_->device_plan();
  if (!copied_) throw Error(method_.info().name + ": attention before its plan");
  return copied_->plan();
}

void PlannedMethod::plan_on_host(const DeviceInput& input, AttentionScratch& scratch,
                                 CudaStream stream) {
  const auto head = static_cast<std::size_t>(problem_.seqlen * problem_.head_dim);
  const auto q_heads = static_cast<std::size_t>(problem_.num_q_heads);
  const auto kv_heads = static_cast<std::size_t>(problem_.num_kv_heads);
  require_memory((q_heads + 2 * kv_heads) * head * sizeof(float),
                 fmt::format("{}: planning on the host", method_.info().name));
  DenseReference reference;
  if (method_.info().is_oracle) reference.lse = dense_lse(device_, input, scratch, stream);
  cuda_check(cudaStreamSynchronize(stream), "wait for Q, K and V");
  AttentionInput host;
  host.name = "q, k, v";
  host.dtype = dtype_;
  host.problem = problem_;
  fetch_heads(input.q, head * q_heads, dtype_, host.q);
  fetch_heads(input.k, head * kv_heads, dtype_, host.k);
  fetch_heads(input.v, head * kv_heads, dtype_, host.v);
  host_plan_.reset();
  host_plan_.emplace(method_.plan_cpu({host, reference, head_params_}, params_));
  copied_.emplace(problem_, PlanPointers(*host_plan_).view(), device_.info.l2_bytes);
}

PreparedAttention PlannedMethod::prepare(const DeviceInput& input, AttentionOutput output,
                                         AttentionScratch& scratch) {
  const DevicePlan plan = device_plan();
  const PlanView& header = plan.header;
  stats_.resize(static_cast<std::size_t>(header.num_passes) *
                    static_cast<std::size_t>(header.num_plan_heads) *
                    static_cast<std::size_t>(header.num_q_tiles),
                "tile statistics");
  output.stats = stats_.data();
  if (quantises()) {
    head_scales_.resize(static_cast<std::size_t>(num_head_scales(problem_)), "scales of heads");
    output.head_scales = head_scales_.data();
  }
  PreparedAttention attention(device_.info, device_.attention, input, plan, output, scratch,
                              /*fp32_accuracy=*/false, quantise_rule(params_));
  workspace_bytes_ = attention.workspace_bytes();
  return attention;
}

void PlannedMethod::enqueue(const DeviceInput& input, AttentionOutput output,
                            AttentionScratch& scratch, CudaStream stream, PhaseTimer* timer) {
  const auto enter = [timer](Phase phase) {
    if (timer != nullptr) timer->enter(phase);
  };
  enter(Phase::kPlanning);
  if (planner_ == nullptr) {
    plan(input, scratch, stream);
    const PreparedAttention attention = prepare(input, output, scratch);
    attention.enqueue_quantise(stream);
    enter(Phase::kAttention);
    attention.enqueue(stream);
    return;
  }
  const PreparedAttention attention = prepare(input, output, scratch);
  attention.enqueue_quantise(stream);
  for (int batch = 0; batch < planner_->num_batches(); ++batch) {
    enter(Phase::kPlanning);
    planner_->plan_batch(batch, input, stream, device_.planning);
    enter(Phase::kAttention);
    attention.enqueue_batch(batch, stream);
  }
}

void PlannedMethod::plan(const DeviceInput& input, AttentionScratch& scratch, CudaStream stream) {
  if (planner_ != nullptr) {
    planner_->plan(input, stream, device_.planning);
  } else if (method_.info().reads_input) {
    plan_on_host(input, scratch, stream);
  }
}

void PlannedMethod::attend(const DeviceInput& input, AttentionOutput output,
                           AttentionScratch& scratch, CudaStream stream) {
  const PreparedAttention attention = prepare(input, output, scratch);
  attention.enqueue_quantise(stream);
  attention.enqueue(stream);
}

void PlannedMethod::check(CudaStream stream) const {
  cuda_check(cudaStreamSynchronize(stream), "wait for attention");
  if (head_scales_.size() > 0) download_and_check_head_scales(problem_, head_scales_.data());
  if (planner_ == nullptr) return;
  try {
    planner_->check();
  } catch (const CudaError&) {
    throw;
  } catch (const Error& error) {
    throw InputError(fmt::format("{}: {}", method_.info().name, error.what()));
  }
}

CountedRun PlannedMethod::count(const DeviceInput& input, CudaStream stream) {
  check(stream);
  CountedRun run;
  run.stats.resize(stats_.size());
  stats_.download(run.stats.data(), "download tile statistics");
  const auto add = [&](const SparsePlan& plan) {
    run.work = count_work(problem_, plan, run.stats).total;
    run.num_plan_heads = plan.header.num_plan_heads;
    run.num_q_tiles = plan.header.num_q_tiles;
  };
  if (planner_ == nullptr) {
    add(*host_plan_);
  } else {
    add(fetch_device_plan(*planner_, device_.planning, input, FetchedArrays::kWithoutTokens,
                          stream));
  }
  return run;
}

std::int64_t PlannedMethod::plan_bytes() const {
  const std::int64_t planning =
      planner_ == nullptr
          ? 0
          : planner_->workspace_bytes() - (owns_scratch_ ? 0 : planner_->scratch_bytes());
  return planning + (copied_ ? copied_->bytes() : 0);
}

}  // namespace s2o
