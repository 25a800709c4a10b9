#include <cuda_runtime.h>
#include <fmt/format.h>

#include <algorithm>
#include <optional>
#include <string>

#include "kernels/common/device_plan_copy.h"
#include "lib/core/error.h"
#include "lib/core/memory.h"
#include "lib/device/planned_attention.h"
#include "lib/input/storage_bits.h"
#include "lib/plan/work.h"
#include "lib/planning/device_planner.h"
#include "lib/prefill/layer_attention.h"

namespace s2o {
namespace {

void fetch_heads(const void* source, std::size_t count, StorageDType dtype,
                 std::vector<std::uint16_t>& bits, std::vector<float>& values) {
  bits.resize(count);
  values.resize(count);
  cuda_check(cudaMemcpy(bits.data(), source, count * sizeof(std::uint16_t), cudaMemcpyDeviceToHost),
             "fetch Q, K and V for planning on the host");
  from_16_bit(bits, dtype, values.data());
}

}  // namespace

struct LayerAttention::Setting {
  const Method* method = nullptr;
  ParamSet params;
  std::unique_ptr<DevicePlanner> planner;  // null: planned on the host
  std::optional<SparsePlan> host_plan;
  std::optional<DevicePlanCopy> copied;  // host_plan on the device

  bool is_fixed() const { return !method->info().reads_input; }
  bool matches(const LayerMethod& layer) const {
    return method == layer.method && params.to_json() == layer.params->to_json();
  }
};

LayerAttention::LayerAttention(const CudaDevice& device, CudaStream stream)
    : device_(device), stream_(stream) {}
LayerAttention::~LayerAttention() = default;

void LayerAttention::prepare(const Problem& problem, StorageDType dtype,
                             std::span<const LayerMethod> layers) {
  const bool same = problem_.seqlen == problem.seqlen && dtype_ == dtype;
  std::vector<std::unique_ptr<Setting>> kept;
  if (same) kept = std::move(settings_);
  settings_.clear();
  layers_.clear();
  last_.reset();
  problem_ = problem;
  dtype_ = dtype;
  const auto num_rows = static_cast<std::size_t>(problem.seqlen * problem.num_q_heads);
  out_.resize(num_rows * static_cast<std::size_t>(problem.head_dim), "output");
  lse_.resize(num_rows, "lse");
  const std::int64_t l2_bytes = device_.info.l2_bytes;
  for (const LayerMethod& layer : layers) {
    const auto matches = [&layer](const auto& setting) {
      return setting && setting->matches(layer);
    };
    auto known = std::find_if(settings_.begin(), settings_.end(), matches);
    if (known == settings_.end()) {
      const auto old = std::find_if(kept.begin(), kept.end(), matches);
      settings_.push_back(old == kept.end() ? std::make_unique<Setting>() : std::move(*old));
      known = settings_.end() - 1;
    }
    layers_.push_back(known->get());
    if ((*known)->method != nullptr) continue;
    Setting& setting = **known;
    const MethodInfo& info = layer.method->info();
    if (info.is_oracle) {
      throw UnsupportedError(fmt::format(
          "{}: needs the dense output of every layer first, which a prefill does not have; run it "
          "with 's2o eval' on a capture",
          info.name));
    }
    setting.params = *layer.params;
    auto planner = layer.method->device_planner({.problem = problem,
                                                 .dtype = dtype,
                                                 .params = setting.params,
                                                 .limits = {.l2_bytes = l2_bytes}});
    if (planner != nullptr) {
      setting.planner = std::make_unique<DevicePlanner>(std::move(planner));
      setting.planner->prepare();
    } else if (!info.reads_input) {
      AttentionInput shape_only;
      shape_only.problem = problem;
      shape_only.dtype = dtype;
      const DenseReference none;
      setting.host_plan.emplace(layer.method->plan_cpu({shape_only, none}, setting.params));
      setting.copied.emplace(problem, PlanPointers(*setting.host_plan).view(), l2_bytes);
    }
    setting.method = layer.method;
  }
}

PreparedAttention LayerAttention::attention_over(const DevicePlan& plan, const DeviceInput& input) {
  const PlanView& header = plan.header;
  stats_.resize(static_cast<std::size_t>(header.num_passes) *
                    static_cast<std::size_t>(header.num_plan_heads) *
                    static_cast<std::size_t>(header.num_q_tiles),
                "tile statistics");
  const AttentionOutput output = {
      .out_16 = out_.data(), .lse = lse_.data(), .stats = stats_.data()};
  return {device_.info, device_.attention, input, plan, output, scratch_};
}

void LayerAttention::enqueue(std::size_t layer, const DeviceInput& input, PhaseTimer& timer) {
  Setting& setting = *layers_.at(layer);
  timer.enter(Phase::kPlanning);
  if (setting.planner != nullptr) {
    const PreparedAttention attention = attention_over(setting.planner->device_plan(), input);
    enqueue_planned(*setting.planner, device_.planning, input, attention, stream_, timer);
    workspace_bytes_ = attention.workspace_bytes();
  } else {
    if (!setting.is_fixed()) plan_on_host(setting, layer, input);
    const PreparedAttention attention = attention_over(setting.copied->plan(), input);
    timer.enter(Phase::kAttention);
    attention.enqueue(stream_);
    workspace_bytes_ = attention.workspace_bytes();
  }
  last_ = {.layer = layer, .input = input};
}

void LayerAttention::plan_on_host(Setting& setting, std::size_t layer, const DeviceInput& input) {
  const auto head = static_cast<std::size_t>(problem_.seqlen * problem_.head_dim);
  const auto heads = static_cast<std::size_t>(problem_.num_q_heads + 2 * problem_.num_kv_heads);
  if (host_input_.q.empty()) {
    require_memory(heads * head * sizeof(float),
                   fmt::format("{}: planning on the host", setting.method->info().name));
  }
  cuda_check(cudaStreamSynchronize(stream_), "wait for Q, K and V");
  std::vector<std::uint16_t> bits;
  fetch_heads(input.q, head * problem_.num_q_heads, dtype_, bits, host_input_.q);
  fetch_heads(input.k, head * problem_.num_kv_heads, dtype_, bits, host_input_.k);
  fetch_heads(input.v, head * problem_.num_kv_heads, dtype_, bits, host_input_.v);
  host_input_.name = fmt::format("layer {}", layer);
  host_input_.layer = static_cast<int>(layer);
  host_input_.dtype = dtype_;
  host_input_.problem = problem_;
  setting.host_plan.reset();
  const DenseReference none;
  setting.host_plan.emplace(setting.method->plan_cpu({host_input_, none}, setting.params));
  setting.copied.emplace(problem_, PlanPointers(*setting.host_plan).view(), device_.info.l2_bytes);
}

PrefillLayer LayerAttention::account() {
  if (!last_) throw Error("LayerAttention: no layer was enqueued");
  const auto [layer, input] = *last_;
  Setting& setting = *layers_.at(layer);
  cuda_check(cudaStreamSynchronize(stream_), "wait for attention");
  std::vector<TileStats> stats(stats_.size());
  stats_.download(stats.data(), "download tile statistics");
  const auto result = [&](const char* planner, const SparsePlan& plan) {
    const WorkCounts work = count_work(problem_, plan, stats).total;
    return PrefillLayer{.planner = planner,
                        .compute_density = work.compute_density(),
                        .pair_density = work.pair_density()};
  };
  if (setting.planner == nullptr) {
    return result(setting.is_fixed() ? "none" : "cpu", *setting.host_plan);
  }
  try {
    setting.planner->check();
  } catch (const CudaError&) {
    throw;
  } catch (const Error& error) {
    throw InputError(
        fmt::format("layer {}: {}: {}", layer, setting.method->info().name, error.what()));
  }
  // Q, K and V of the layer are still where it found them.
  return result("cuda", fetch_device_plan(*setting.planner, device_.planning, input,
                                          FetchedArrays::kWithoutTokens, stream_));
}

std::int64_t LayerAttention::device_bytes() const {
  std::int64_t bytes = workspace_bytes_;
  for (const auto& setting : settings_) {
    if (setting->copied) bytes += setting->copied->bytes();
    if (setting->planner != nullptr) bytes += setting->planner->workspace_bytes();
  }
  return bytes;
}

}  // namespace s2o
